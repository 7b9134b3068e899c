package doctor

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/criclient"
)

// ask asks the runtime at endpoint what the checks want to know of it.
func ask(ctx context.Context, endpoint string) Answer {
	a := Answer{Refused: map[string]string{}}
	client, err := criclient.Dial(endpoint)
	if err != nil {
		a.Err = err
		return a
	}
	defer client.Close()
	v, err := client.RuntimeServiceClient.Version(ctx, &runtimeapi.VersionRequest{})
	switch code := status.Code(err); {
	case ctx.Err() != nil || code == codes.DeadlineExceeded:
		a.Err = context.DeadlineExceeded
		return a
	case code == codes.Unavailable:
		a.Err = err
		return a
	case err != nil:
		a.Refused["v1"] = err.Error()
		return a
	}
	a.Name, a.Version, a.APIs = v.GetRuntimeName(), v.GetRuntimeVersion(), []string{"v1"}
	if s, err := client.RuntimeServiceClient.Status(ctx, &runtimeapi.StatusRequest{}); err == nil {
		for _, c := range s.GetStatus().GetConditions() {
			message := c.GetMessage()
			if message == "" {
				message = c.GetReason()
			}
			a.Conditions = append(a.Conditions, Condition{Type: c.GetType(), True: c.GetStatus(), Message: message})
		}
	}
	if c, err := client.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{}); err == nil && c.GetLinux() != nil {
		a.CgroupDriver = map[runtimeapi.CgroupDriver]string{runtimeapi.CgroupDriver_SYSTEMD: "systemd", runtimeapi.CgroupDriver_CGROUPFS: "cgroupfs"}[c.GetLinux().GetCgroupDriver()]
	}
	images, err := client.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	a.ImageErr = err
	for _, u := range images.GetImageFilesystems() {
		a.ImageDirs = append(a.ImageDirs, u.GetFsId().GetMountpoint())
	}
	return a
}
