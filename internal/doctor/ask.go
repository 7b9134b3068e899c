package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/criclient"
)

// ask asks the runtime and the image service at their endpoints what the checks
// want to know of them, first of all which versions of the CRI they serve.
func ask(ctx context.Context, runtime, images string) Answer {
	ofImages := make(chan error, 1)
	if images != runtime {
		go func() { ofImages <- askImages(ctx, images) }()
	}
	report, err := criclient.Probe(ctx, runtime)
	if err != nil {
		return Answer{Err: err}
	}
	if images == runtime {
		_, err = report.Chooses(criclient.ImageService)
		ofImages <- err
	}
	a := Answer{Refused: map[string]string{}}
	for _, answer := range report.Answers {
		switch {
		case answer.Service == criclient.ImageService:
		case answer.Err == nil:
			a.APIs = append(a.APIs, string(answer.Version))
			a.Name, a.Version = answer.Runtime.GetRuntimeName(), strings.TrimPrefix(answer.Runtime.GetRuntimeVersion(), "v")
		case errors.Is(answer.Err, criclient.ErrTimeout) || errors.Is(answer.Err, context.DeadlineExceeded):
			a.Err = context.DeadlineExceeded
		case errors.As(answer.Err, new(*criclient.EndpointError)): // it has just gone
			a.Err = answer.Err
		default:
			a.Refused[string(answer.Version)] = answer.Err.Error()
		}
	}
	if len(a.APIs) == 0 {
		return a
	}
	a.Err = nil // who answers for one version may take its time for another
	if a.ImageErr = <-ofImages; ctx.Err() != nil {
		a.ImageErr = nil // not known
	}
	a.describe(ctx, runtime, images)
	return a
}

func askImages(ctx context.Context, endpoint string) error {
	report, err := criclient.Probe(ctx, endpoint)
	if err == nil {
		_, err = report.Chooses(criclient.ImageService)
	}
	return err
}

// describe asks for conditions, cgroup driver, where images are, and davitd for
// what of its configuration needs a restart and how it keeps images.
func (a *Answer) describe(ctx context.Context, runtime, images string) {
	client, err := criclient.New(criclient.Options{Runtime: runtime, Image: images})
	if err != nil {
		return
	}
	defer func() { _ = client.Close() }()
	status, err := client.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if errors.Is(err, criclient.ErrTimeout) {
		a.Err = context.DeadlineExceeded
		return
	}
	for _, c := range status.GetStatus().GetConditions() {
		message := strings.TrimPrefix(c.GetReason()+": "+c.GetMessage(), ": ")
		a.Conditions = append(a.Conditions, Condition{Type: c.GetType(), True: c.GetStatus(), Message: strings.TrimSuffix(message, ": ")})
	}
	var own struct {
		Configuration struct {
			NeedRestart []string `json:"needRestart"`
		} `json:"configuration"`
		ImageLayers string `json:"imageLayers"`
	}
	if json.Unmarshal([]byte(status.GetInfo()["config"]), &own) == nil {
		a.NeedRestart, a.ImageLayers = own.Configuration.NeedRestart, own.ImageLayers
	}
	if c, err := client.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{}); err == nil && c.GetLinux() != nil {
		a.CgroupDriver = strings.ToLower(c.GetLinux().GetCgroupDriver().String())
	}
	stores, err := client.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err == nil {
		for _, u := range stores.GetImageFilesystems() {
			a.ImageDirs = append(a.ImageDirs, u.GetFsId().GetMountpoint())
		}
	}
}
