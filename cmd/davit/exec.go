package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (a *app) execCommand() *cobra.Command {
	var container string
	cmd := &cobra.Command{
		Use:   "exec POD [-c CONTAINER] -- COMMAND [ARGUMENT...]",
		Short: "Run a command in a container and exit with its code",
		Long: `Run a command in a container, print what it wrote once it has ended, and exit with its code.
It has no standard input, and at most 16 MiB of output. --timeout, if given, kills it.`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.findContainer(cmd.Context(), args[0], container)
			if err != nil {
				return err
			}
			var limit time.Duration
			if cmd.Flags().Changed("timeout") {
				limit = a.timeout
			}
			return a.exec(cmd, c, args[1:], limit)
		},
	}
	cmd.Flags().StringVarP(&container, "container", "c", "", "name of the container, if the pod has several")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return fmt.Errorf("%w; if it is the command's, put -- before the command", err)
	})
	return cmd
}

func (a *app) exec(cmd *cobra.Command, c *runtimeapi.Container, command []string, limit time.Duration) error {
	r, err := a.client.ExecSync(cmd.Context(), &runtimeapi.ExecSyncRequest{
		ContainerId: c.Id, Cmd: command, Timeout: int64((limit + time.Second - 1) / time.Second),
	})
	if limit > 0 && status.Code(err) == codes.DeadlineExceeded {
		return fmt.Errorf("exec in container %s: the time limit of %v is over", c.Metadata.GetName(), limit)
	}
	if err != nil {
		return fmt.Errorf("exec in container %s: %w", c.Metadata.GetName(), err)
	}
	_, outErr := a.out.Write(r.Stdout)
	_, errErr := a.err.Write(r.Stderr)
	if err := errors.Join(outErr, errErr); err != nil {
		return err
	}
	if r.ExitCode != 0 {
		return exitCode(r.ExitCode)
	}
	return nil
}
