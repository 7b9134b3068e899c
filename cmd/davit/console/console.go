// Package console is what davit's commands share: where they read and write,
// the runtime that the user means, and how results and errors are told. It
// knows no command.
package console

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/davit-runtime/davit/criclient"
	"github.com/davit-runtime/davit/internal/endpoint"
)

const defaultTimeout = 2 * time.Minute // the kubelet's runtimeRequestTimeout

// A Console is one run of davit.
type Console struct {
	In       io.Reader
	Out, Err io.Writer

	Node string              // where its files are: "/"
	Env  func(string) string // os.Getenv

	Timeout    time.Duration // longest wait for one answer; 0: none
	CredsGiven bool          // for the registry

	Found  endpoint.Found    // once Dial was called
	Client *criclient.Client // likewise

	endpoint, imageEndpoint string // as given by flags
	output                  string // "" or "json"
}

// Flags adds those that all commands have.
func (c *Console) Flags(flags *pflag.FlagSet) {
	flags.StringVar(&c.endpoint, "endpoint", "", "socket of the container runtime; else $"+endpoint.Env+", /etc/crictl.yaml, the kubelet's, or the one that answers at a usual place")
	flags.StringVar(&c.imageEndpoint, "image-endpoint", "", "socket for images, if it is another; else $"+endpoint.ImageEnv)
	flags.DurationVar(&c.Timeout, "timeout", defaultTimeout, "longest wait for one answer of the runtime, 0 for none; what moves or reads whole images is not limited")
	flags.StringVarP(&c.output, "output", "o", "", "json prints the runtime's messages as JSON")
}

// JSON reports whether output is for programs.
func (c *Console) JSON() bool { return c.output == "json" }

// Begin is what a command that needs a runtime begins with.
func (c *Console) Begin(cmd *cobra.Command, _ []string) error {
	if err := c.CheckOutput(); err != nil {
		return err
	}
	if c.Timeout < 0 {
		return fmt.Errorf("--timeout: %v is negative", c.Timeout)
	}
	return c.Dial(cmd)
}

// CheckOutput refuses forms of output that there are not.
func (c *Console) CheckOutput() error {
	if c.output != "" && c.output != "json" {
		return fmt.Errorf("-o %s: only json is known; leave it out for a table", c.output)
	}
	return nil
}

// Search is how to look for the runtime.
func (c *Console) Search() endpoint.Search {
	return endpoint.Search{Root: c.Node, Named: c.endpoint, ImageName: c.imageEndpoint, Env: c.Env}
}

// Dial finds the runtime. Nothing is connected yet.
func (c *Console) Dial(cmd *cobra.Command) (err error) {
	if c.Found, err = c.Search().Find(cmd.Context()); err != nil {
		return err
	}
	connecting := c.Timeout
	if c.Found.Timeout > 0 && !cmd.Flags().Changed("timeout") {
		connecting = c.Found.Timeout
	}
	c.Client, err = criclient.New(criclient.Options{Runtime: c.Found.Runtime.Address, Image: c.Found.Image.Address, Timeout: connecting})
	return err
}

// Close ends connections.
func (c *Console) Close() {
	if c.Client != nil {
		_ = c.Client.Close()
	}
}

// Call bounds one call of the runtime; more is what the call itself may wait.
func (c *Console) Call(ctx context.Context, more time.Duration) (context.Context, context.CancelFunc) {
	if c.Timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, c.Timeout+more)
}

// ExplainUsage says how a command is used instead of counting its arguments.
func ExplainUsage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if check(cmd, args) != nil {
			return fmt.Errorf("wrong arguments; use: %s", cmd.UseLine())
		}
		return nil
	}
}

// ExitCode ends the program with a code and no message.
type ExitCode int

func (c ExitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// NotFound is a name that nothing has.
type NotFound struct {
	What, Ref string
	Hint      string // the command that tells what there is
}

func (e *NotFound) Error() string {
	return fmt.Sprintf("there is no %s %q; see %s", e.What, e.Ref, e.Hint)
}
