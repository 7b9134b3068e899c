package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/davit-runtime/davit/cmd/davit/console"
	"github.com/davit-runtime/davit/internal/doctor"
	"github.com/davit-runtime/davit/internal/endpoint"
)

func (a app) doctorCommand() *cobra.Command {
	var strict bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check this node, and say how to fix what is wrong; exit with 1 on errors",
		Long: `Check this node: what its kernel, files, sockets and programs are like, against what a container runtime, davit's or another,
and a kubelet need. Each fault has a name that stays the same, and a fix to paste. Nothing is changed. Without root some things cannot be
seen; it says which. Exit code 1: there are errors, or with --strict warnings. With -o json: one object.`,
		Args: cobra.NoArgs,
		// Nothing is dialled beforehand: an endpoint that is wrong is a finding.
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.CheckOutput() },
		RunE: func(cmd *cobra.Command, _ []string) error {
			n := doctor.ThisNode()
			n.Version = version
			said := a.Search()
			n.Given = doctor.Given{Runtime: doctor.Endpoint(said.Given()), Images: doctor.Endpoint(said.GivenImages()), Crictl: a.Env(endpoint.CrictlEnv)}
			r := doctor.Run(cmd.Context(), n)
			if err := a.printReport(r); err != nil {
				return err
			}
			if r.Errors > 0 || strict && r.Warnings > 0 {
				return console.ExitCode(1)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&strict, "strict", false, "exit with 1 on warnings, too")
	return c
}

func (a app) printReport(r *doctor.Report) error {
	if a.JSON() {
		raw, err := json.Marshal(r)
		if err != nil {
			return err
		}
		return console.WriteJSON(a.Out, raw)
	}
	width := 0
	for _, c := range r.Checks {
		width = max(width, len(c.Check))
	}
	for _, c := range r.Checks {
		if c.Level != doctor.Skipped {
			printCheck(a.Out, c, width)
		}
	}
	printSkipped(a.Out, r)
	at := r.Endpoint.Address
	if images := r.Images.Address; images != "" && images != at {
		at += ", images at " + images
	}
	_, err := fmt.Fprintf(a.Out, "\n%s at %s: %d ok, %d warnings, %d errors, %d skipped, in %.1f s\n",
		r.Node, at, r.OK, r.Warnings, r.Errors, r.Skipped, float64(r.TookMillis)/1000)
	return err
}

// printCheck writes a line for what is in order, and for each fault its name,
// what was found, and the fix.
func printCheck(w io.Writer, c doctor.Result, width int) {
	if len(c.Findings) == 0 {
		fmt.Fprintf(w, "%-8s %-*s  %s\n", c.Level, width, c.Check, c.Message)
	}
	for _, f := range c.Findings {
		fmt.Fprintf(w, "%-8s %-*s  %s: %s\n", f.Level, width, c.Check, f.Fault, f.Message)
		for line := range strings.Lines(f.Fix) {
			fmt.Fprintf(w, "%*s    %s\n", width+9, "", strings.TrimRight(line, "\n"))
		}
	}
	for _, u := range c.Unseen {
		fmt.Fprintf(w, "%-8s %-*s  not seen: %s\n", "", width, "", u)
	}
}

// printSkipped writes a line for each reason.
func printSkipped(w io.Writer, r *doctor.Report) {
	names := map[string][]string{}
	var reasons []string
	for _, c := range r.Checks {
		if c.Level == doctor.Skipped {
			if !slices.Contains(reasons, c.Message) {
				reasons = append(reasons, c.Message)
			}
			names[c.Message] = append(names[c.Message], c.Check)
		}
	}
	for _, reason := range reasons {
		fmt.Fprintf(w, "%-8s %s: %s\n", doctor.Skipped, strings.Join(names[reason], ", "), reason)
	}
}
