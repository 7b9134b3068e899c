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
	"github.com/davit-runtime/davit/internal/endpoint"
)

const (
	defaultTimeout  = 2 * time.Minute // the kubelet's runtimeRequestTimeout
	exitInterrupted = 130             // 128 + SIGINT, as shells have it
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run is the whole program; it returns the exit code.
func run(args []string, in io.Reader, out, errOut io.Writer) int {
	a := &app{in: in, out: out, err: errOut, node: "/", env: os.Getenv}
	return a.run(args)
}

func (a *app) run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)() // a second signal ends the program at once
	defer a.close()
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	err := root.ExecuteContext(ctx)
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	for _, line := range a.explained(err) {
		fmt.Fprintln(a.err, line)
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

	node string              // where its files are: "/"
	env  func(string) string // os.Getenv

	endpoint, imageEndpoint string // as given by flags
	timeout                 time.Duration
	output                  string // "" or "json"

	credsGiven bool // for the registry

	found  endpoint.Found
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
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.endpoint, "endpoint", "", "socket of the container runtime; else $"+endpoint.Env+", /etc/crictl.yaml, the kubelet's, or the one that answers at a usual place")
	flags.StringVar(&a.imageEndpoint, "image-endpoint", "", "socket for images, if it is another; else $"+endpoint.ImageEnv)
	flags.DurationVar(&a.timeout, "timeout", defaultTimeout, "longest wait for one answer of the runtime; pulling an image is not limited")
	flags.StringVarP(&a.output, "output", "o", "", "json prints the CRI's messages as JSON")
	root.AddCommand(
		a.playCommand(), a.podsCommand(), a.psCommand(), a.logsCommand(), a.execCommand(), a.attachCommand(), a.forwardCommand(),
		a.stopCommand(), a.rmCommand(), a.inspectCommand(),
		a.imagesCommand(), a.pullCommand(), a.rmiCommand(),
		a.statusCommand(), a.versionCommand(), a.doctorCommand(),
	)
	for _, c := range root.Commands() { // not help and completion, which work without a runtime
		c.Args = explainUsage(c.Args)
		if c.PersistentPreRunE == nil {
			c.PersistentPreRunE = a.begin
		}
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

// begin is what a command that needs a runtime begins with.
func (a *app) begin(cmd *cobra.Command, _ []string) error {
	if err := a.checkOutput(); err != nil {
		return err
	}
	return a.dial(cmd)
}

func (a *app) checkOutput() error {
	if a.output != "" && a.output != "json" {
		return fmt.Errorf("-o %s: only json is known; leave it out for a table", a.output)
	}
	return nil
}

func (a *app) search() endpoint.Search {
	return endpoint.Search{Root: a.node, Named: a.endpoint, ImageName: a.imageEndpoint, Env: a.env}
}

// dial finds the runtime. Nothing is connected yet.
func (a *app) dial(cmd *cobra.Command) (err error) {
	if a.found, err = a.search().Find(cmd.Context()); err != nil {
		return err
	}
	connecting := a.timeout
	if a.found.Timeout > 0 && !cmd.Flags().Changed("timeout") {
		connecting = a.found.Timeout
	}
	a.client, err = criclient.New(criclient.Options{Runtime: a.found.Runtime.Address, Image: a.found.Image.Address, Timeout: connecting})
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
