package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/crilog"
)

type logOptions struct {
	container  string
	follow     bool
	tail       int
	timestamps bool
}

func (a app) logsCommand() *cobra.Command {
	var o logOptions
	cmd := &cobra.Command{
		Use:   "logs POD[/CONTAINER]",
		Short: "Show what the containers of a pod have written",
		Long: `Show what the containers of a pod have written, from the log files that the runtime names;
so davit must run on the runtime's machine. With several containers, each line begins with the container's name.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.logs(cmd.Context(), args[0], o) },
	}
	cmd.Flags().StringVarP(&o.container, "container", "c", "", "only this container")
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on until the containers have ended")
	cmd.Flags().IntVar(&o.tail, "tail", crilog.All, "only the last lines; all if negative")
	cmd.Flags().BoolVar(&o.timestamps, "timestamps", false, "begin each line with its time")
	return cmd
}

func (a app) logs(ctx context.Context, ref string, o logOptions) error {
	found, err := a.findContainers(ctx, ref, o.container)
	if err != nil {
		return err
	}
	p := &linePrinter{out: a.Out, err: a.Err, timestamps: o.timestamps}
	readOne := func(c *runtimeapi.Container) error {
		prefix := ""
		if len(found) > 1 {
			prefix = c.Metadata.GetName() + " | "
		}
		if err := a.logOf(ctx, c, o, p.printer(ctx, prefix)); err != nil {
			return fmt.Errorf("log of container %s: %w", c.Metadata.GetName(), err)
		}
		return nil
	}
	errs := make([]error, len(found))
	var wg sync.WaitGroup
	for i, c := range found {
		if !o.follow {
			errs[i] = readOne(c)
			continue
		}
		wg.Go(func() { errs[i] = readOne(c) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (a app) logOf(ctx context.Context, c *runtimeapi.Container, o logOptions, emit func(crilog.Line) error) error {
	s, err := a.containerStatus(ctx, c.Id, false)
	if err != nil {
		return err
	}
	path := s.GetStatus().GetLogPath()
	if path == "" {
		return errors.New("it has none: the pod was started without a log directory")
	}
	if !o.follow {
		return crilog.Read(path, o.tail, emit)
	}
	ended := func(ctx context.Context) bool {
		s, err := a.containerStatus(ctx, c.Id, false)
		if status.Code(err) == codes.NotFound {
			return true
		}
		return err == nil && s.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
	}
	err = crilog.Follow(ctx, path, o.tail, ended, emit)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (a app) containerStatus(ctx context.Context, id string, verbose bool) (*runtimeapi.ContainerStatusResponse, error) {
	ctx, cancel := a.Call(ctx, 0)
	defer cancel()
	return a.Client.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: verbose})
}

// linePrinter writes whole lines of several containers: what went to a
// container's standard error goes to ours.
type linePrinter struct {
	timestamps bool

	mu       sync.Mutex
	out, err io.Writer
	buf      []byte
}

func (p *linePrinter) printer(ctx context.Context, prefix string) func(crilog.Line) error {
	return func(l crilog.Line) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.buf = append(p.buf[:0], prefix...)
		if p.timestamps && !l.Time.IsZero() {
			p.buf = l.Time.AppendFormat(p.buf, time.RFC3339Nano+" ")
		}
		p.buf = append(append(p.buf, l.Text...), '\n')
		w := p.out
		if l.Stream == "stderr" {
			w = p.err
		}
		_, err := w.Write(p.buf)
		return err
	}
}
