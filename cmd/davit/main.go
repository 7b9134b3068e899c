// Command davit drives a container runtime from the command line. It speaks the
// Container Runtime Interface, so it works with any runtime, and for what the
// CRI has no words for davit's own service, api/image/v1; davit play does from
// a Pod manifest what a kubelet would.
//
// Output for people goes to standard output in aligned columns, with -o json
// the messages themselves in protobuf's JSON form. Errors are one line on
// standard error, and exit code 1, or 130 if a signal interrupted the command;
// to be interrupted is how logs -f ends, with 0.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/davit-runtime/davit/cmd/davit/console"
	"github.com/davit-runtime/davit/cmd/davit/images"
	"github.com/davit-runtime/davit/cmd/davit/why"
)

const exitInterrupted = 130 // 128 + SIGINT, as shells have it

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run is the whole program; it returns the exit code.
func run(args []string, in io.Reader, out, errOut io.Writer) int {
	a := app{&console.Console{In: in, Out: out, Err: errOut, Node: "/", Env: os.Getenv}}
	return a.run(args)
}

func (a app) run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)() // a second signal ends the program at once
	defer a.Close()
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	err := root.ExecuteContext(ctx)
	var code console.ExitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	for _, line := range a.Explained(err) {
		fmt.Fprintln(a.Err, line)
	}
	if console.Interrupted(err) {
		return exitInterrupted
	}
	return 1
}

// app has the commands.
type app struct{ *console.Console }

func (a app) root() *cobra.Command {
	root := &cobra.Command{
		Use:     "davit",
		Short:   "Run Kubernetes pods on a container runtime",
		Version: ownVersion(),

		SuggestionsMinimumDistance: 2, // cobra's own, when it is the one to suggest
		Args:                       unknownCommand,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors:              true,
		SilenceUsage:               true,
	}
	a.Flags(root.PersistentFlags())
	root.AddCommand(
		a.playCommand(), a.podsCommand(), a.psCommand(), a.logsCommand(), a.execCommand(), a.attachCommand(), a.forwardCommand(),
		a.cpCommand(), a.debugCommand(), a.topCommand(), insideCommand(),
		a.stopCommand(), a.rmCommand(), a.inspectCommand(),
		a.statusCommand(), a.versionCommand(), a.doctorCommand(), why.Command(a.Console),
	)
	root.AddCommand(images.Commands(a.Console)...)
	a.completions(root)
	for _, c := range root.Commands() { // not help and completion, which work without a runtime
		explainUsage(c)
		if c.PersistentPreRunE == nil {
			c.PersistentPreRunE = a.Begin
		}
	}
	root.SetVersionTemplate("davit {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	})
	return root
}

// unknownCommand is said of what no command of root's is called.
func unknownCommand(root *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if like := root.SuggestionsFor(args[0]); len(like) > 0 {
		hint = "; is " + strings.Join(like, " or ") + " meant?"
	}
	return fmt.Errorf("there is no command %q%s; see davit --help", args[0], hint)
}

// explainUsage has a command, and those below it, say how they are used.
func explainUsage(c *cobra.Command) {
	c.Args = console.ExplainUsage(c.Args)
	for _, below := range c.Commands() {
		explainUsage(below)
	}
}
