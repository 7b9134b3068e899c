package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/cmd/davit/console"
	"github.com/davit-runtime/davit/cmd/davit/images"
	"github.com/davit-runtime/davit/internal/crilog"
	"github.com/davit-runtime/davit/internal/play"
)

const (
	defaultPlayDir = play.UsualDir
	defaultLogDir  = "/var/log/pods" // the kubelet's
	failureLines   = 10              // of a failed container's log
)

type playOptions struct {
	dir, logDir string
	keep        bool
}

func (a app) playCommand() *cobra.Command {
	var o playOptions
	cmd := &cobra.Command{
		Use:   "play FILE|-",
		Short: "Start the pods of a Kubernetes Pod manifest",
		Long: `Start the pods of a Kubernetes Pod manifest, as a kubelet would: pull the images,
make the sandbox, run the init containers, start the containers.

The manifest may be YAML or JSON and hold several documents, and Lists of Pods. It is read strictly: a field that
a Pod does not have, or that needs a cluster or a kubelet's attention (probes, hooks, Secrets,
ConfigMaps, claims), is an error. Where a kubelet has a choice: seccomp is RuntimeDefault unless
the manifest says otherwise; dnsPolicy ClusterFirst means the host's resolver; runtimeClassName
is the name of the runtime's handler; hostUsers false takes 65536 user IDs of its own, above
1879048191. Nothing is restarted when it ends.

Remove a pod and its files by davit rm. If anything fails, what was made is removed again.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.play(cmd.Context(), args[0], o) },
	}
	cmd.Flags().StringVar(&o.dir, "play-dir", defaultPlayDir, "directory for the pods' volumes and /etc/hosts")
	cmd.Flags().StringVar(&o.logDir, "log-dir", defaultLogDir, "directory for the pods' logs")
	cmd.Flags().BoolVar(&o.keep, "keep", false, "leave what was made when something fails")
	return cmd
}

func (a app) play(ctx context.Context, file string, o playOptions) error {
	pods, err := a.readManifest(ctx, file)
	if err != nil {
		return err
	}
	node, err := play.ThisNode()
	if err != nil {
		return err
	}
	for _, dir := range []*string{&o.dir, &o.logDir} { // the runtime takes only absolute paths
		if *dir, err = filepath.Abs(*dir); err != nil {
			return err
		}
	}
	out := a.Out
	if a.JSON() {
		out = a.Err
	}
	p := &play.Player{
		Pods: a.Client, Images: a.Client, Dir: o.dir, LogDir: o.logDir,
		Timeout: a.Timeout, Node: node, Step: images.NewSteps(a.Console, out).Step,
	}
	var begun []*corev1.Pod
	for _, pod := range pods {
		started := time.Now()
		fmt.Fprintf(out, "pod %s/%s\n", pod.Namespace, pod.Name)
		some, err := p.Up(ctx, pod)
		if some {
			begun = append(begun, pod)
		}
		if err != nil {
			a.showLog(err)
			return errors.Join(err, a.takeBack(ctx, p, begun, o.keep))
		}
		fmt.Fprintf(out, "pod %s/%s is up, %s\n", pod.Namespace, pod.Name, console.Took(started))
	}
	if a.JSON() {
		return a.printPlayed(ctx, begun)
	}
	return nil
}

func (a app) readManifest(ctx context.Context, file string) ([]*corev1.Pod, error) {
	var data []byte
	var err error
	if file == "-" {
		file = "standard input"
		data, err = readAll(ctx, a.In)
	} else {
		data, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	return play.Read(file, data)
}

// readAll is io.ReadAll until ctx ends. What is read from then on is nobody's:
// the program ends.
func readAll(ctx context.Context, from io.Reader) ([]byte, error) {
	type read struct {
		data []byte
		err  error
	}
	done := make(chan read, 1)
	go func() {
		data, err := io.ReadAll(from)
		done <- read{data, err}
	}()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-done:
		return r.data, r.err
	}
}

// showLog prints what a failed container said last.
func (a app) showLog(err error) {
	var ce *play.ContainerError
	if !errors.As(err, &ce) {
		return
	}
	var lines []string
	// An error here means no more than that there is nothing to show.
	_ = crilog.Read(ce.LogPath, failureLines, func(l crilog.Line) error {
		lines = append(lines, string(l.Text))
		return nil
	})
	if message, err := os.ReadFile(ce.MessagePath); err == nil && len(message) > 0 {
		lines = append(lines, "termination message: "+strings.TrimSpace(string(message)))
	}
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(a.Err, "last lines of container %s:\n", ce.Container)
	for _, l := range lines {
		fmt.Fprintf(a.Err, "  | %s\n", l)
	}
}

// takeBack removes the pods of a manifest that failed, also when the reason
// is that the caller gave up.
func (a app) takeBack(ctx context.Context, p *play.Player, pods []*corev1.Pod, keep bool) error {
	if keep {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, pod := range pods {
		if err := p.Down(ctx, pod); err != nil {
			errs = append(errs, fmt.Errorf("remove what was made of pod %s/%s: %w", pod.Namespace, pod.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (a app) printPlayed(ctx context.Context, pods []*corev1.Pod) error {
	out := &runtimeapi.ListPodSandboxResponse{}
	for _, pod := range pods {
		found, err := a.listPods(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{play.LabelPodUID: string(pod.UID)}})
		if err != nil {
			return err
		}
		out.Items = append(out.Items, found...)
	}
	return a.PrintMessage(out)
}
