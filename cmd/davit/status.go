package main

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// version is set when a release is built: -ldflags "-X main.version=…".
var version string

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say whether the runtime is ready; exit with 1 if not",
		Long:  `Say whether the runtime is ready, and what its handlers can do. With -o json: the CRI's StatusResponse.`,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := a.call(cmd.Context(), 0)
			defer cancel()
			r, err := a.client.RuntimeServiceClient.Status(ctx, &runtimeapi.StatusRequest{Verbose: a.output == "json"})
			if err != nil {
				return fmt.Errorf("status: %w", err)
			}
			if err := a.printStatus(ctx, r); err != nil {
				return err
			}
			return ready(r.GetStatus().GetConditions())
		},
	}
}

func (a *app) printStatus(ctx context.Context, r *runtimeapi.StatusResponse) error {
	if a.output == "json" {
		return a.printJSON(r)
	}
	v, err := a.client.CheckVersion(ctx)
	if err != nil {
		return fmt.Errorf("version: %w", err)
	}
	fmt.Fprintf(a.out, "%s %s at %s\n\n", v.RuntimeName, v.RuntimeVersion, a.client.Endpoint())
	var rows [][]string
	for _, c := range r.GetStatus().GetConditions() {
		kind, isReady := strings.CutSuffix(c.Type, "Ready")
		state := yes(c.Status)
		if isReady {
			state = "ready"
			if !c.Status {
				state = "not ready"
			}
		}
		rows = append(rows, []string{kind, state, dash(joinNonEmpty(": ", c.Reason, c.Message))})
	}
	if err := a.printTable("CONDITION STATE REASON", rows); err != nil {
		return err
	}
	fmt.Fprintln(a.out)
	rows = nil
	for _, h := range r.GetRuntimeHandlers() {
		name := h.Name
		if name == "" {
			name = "(default)"
		}
		rows = append(rows, []string{name, yes(h.Features.GetRecursiveReadOnlyMounts()), yes(h.Features.GetUserNamespaces())})
	}
	return a.printTable("HANDLER RECURSIVE-READ-ONLY USER-NAMESPACES", rows)
}

// ready is an error that names what is not, with the runtime's reason.
func ready(conditions []*runtimeapi.RuntimeCondition) error {
	var not []string
	for _, c := range conditions {
		if !c.Status && (c.Type == runtimeapi.RuntimeReady || c.Type == runtimeapi.NetworkReady) {
			not = append(not, strings.TrimSuffix(c.Type, "Ready")+": "+joinNonEmpty(": ", c.Reason, c.Message))
		}
	}
	if len(not) > 0 {
		return fmt.Errorf("not ready: %s", strings.Join(not, "; "))
	}
	return nil
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the versions of davit and of the runtime",
		Long:  "Show the versions of davit and of the runtime. With -o json: the CRI's VersionResponse.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := a.call(cmd.Context(), 0)
			defer cancel()
			if a.output != "json" {
				fmt.Fprintf(a.out, "davit     %s\n", ownVersion())
			}
			v, err := a.client.CheckVersion(ctx)
			if err != nil {
				return fmt.Errorf("version: %w", err)
			}
			if a.output == "json" {
				return a.printJSON(v)
			}
			_, err = fmt.Fprintf(a.out, "runtime   %s %s\nCRI       %s\nendpoint  %s\n",
				v.RuntimeName, v.RuntimeVersion, v.RuntimeApiVersion, a.client.Endpoint())
			return err
		},
	}
}

func ownVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

func joinNonEmpty(sep string, parts ...string) string {
	var out []string
	for _, p := range parts {
		if p != "" {
			out = append(out, p)
		}
	}
	return strings.Join(out, sep)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
