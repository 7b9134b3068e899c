// Command davit drives a container runtime from the command line. It speaks
// only the Container Runtime Interface, so it works with any runtime; davit
// play does from a Pod manifest what a kubelet would.
//
// Output for people goes to standard output in aligned columns, with -o json
// the CRI's own messages in protobuf's JSON form. Errors are one line on
// standard error, and exit code 1, or 130 if a signal interrupted the command.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/davit-runtime/davit/criclient"
)

const (
	defaultEndpoint = "unix:///run/davit/davit.sock"
	endpointEnv     = "CONTAINER_RUNTIME_ENDPOINT"
	defaultTimeout  = 2 * time.Minute // the kubelet's runtimeRequestTimeout
	exitInterrupted = 130             // 128 + SIGINT, as shells have it
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run is the whole program; it returns the exit code.
func run(args []string, in io.Reader, out, errOut io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)() // a second signal ends the program at once
	a := &app{in: in, out: out, err: errOut}
	defer a.close()
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	for _, e := range apart(err) {
		fmt.Fprintln(errOut, a.explain(e))
	}
	if interrupted(err) {
		return exitInterrupted
	}
	return 1
}

// app is what the commands share.
type app struct {
	in       io.Reader
	out, err io.Writer

	endpoint string
	timeout  time.Duration
	output   string // "" or "json"

	credsGiven bool // for the registry

	client *criclient.Client
}

// exitCode ends the program with a code and no message.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "davit",
		Short:         "Run Kubernetes pods on a container runtime",
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			return a.dial()
		},
	}
	endpoint := os.Getenv(endpointEnv)
	if endpoint == "" {
		endpoint = defaultEndpoint
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.endpoint, "endpoint", endpoint, "socket of the container runtime (environment: "+endpointEnv+")")
	flags.DurationVar(&a.timeout, "timeout", defaultTimeout, "longest wait for one answer of the runtime; pulling an image is not limited")
	flags.StringVarP(&a.output, "output", "o", "", "json prints the CRI's messages as JSON")
	root.AddCommand(
		a.playCommand(), a.podsCommand(), a.psCommand(), a.logsCommand(), a.execCommand(),
		a.stopCommand(), a.rmCommand(), a.inspectCommand(),
		a.imagesCommand(), a.pullCommand(), a.rmiCommand(),
		a.statusCommand(), a.versionCommand(), a.doctorCommand(),
	)
	for _, c := range root.Commands() {
		c.Args = explainUsage(c.Args)
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	})
	return root
}

// explainUsage says how a command is used instead of counting its arguments.
func explainUsage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if check(cmd, args) != nil {
			return fmt.Errorf("wrong arguments; use: %s", cmd.UseLine())
		}
		return nil
	}
}

func (a *app) checkOutput() error {
	if a.output != "" && a.output != "json" {
		return fmt.Errorf("-o %s: only json is known; leave it out for a table", a.output)
	}
	return nil
}

func (a *app) dial() (err error) {
	a.client, err = criclient.New(criclient.Options{Runtime: a.endpoint})
	return err
}

func (a *app) close() {
	if a.client != nil {
		_ = a.client.Close()
	}
}

// call bounds one call of the runtime; more is what the call itself may wait.
func (a *app) call(ctx context.Context, more time.Duration) (context.Context, context.CancelFunc) {
	if a.timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, a.timeout+more)
}
