package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/cmd/davit/console"
)

func (a app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say whether the runtime is ready; exit with 1 if not",
		Long:  `Say whether the runtime is ready, and what its handlers can do. With -o json: the CRI's StatusResponse.`,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := a.Call(cmd.Context(), 0)
			defer cancel()
			r, err := a.Client.RuntimeServiceClient.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
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

func (a app) printStatus(ctx context.Context, r *runtimeapi.StatusResponse) error {
	if a.JSON() {
		return a.PrintMessage(r)
	}
	v, err := a.Client.CheckVersion(ctx)
	if err != nil {
		return fmt.Errorf("version: %w", err)
	}
	fmt.Fprintf(a.Out, "%s %s at %s\n\n", v.RuntimeName, v.RuntimeVersion, a.Client.Endpoint())
	var rows [][]string
	for _, c := range r.GetStatus().GetConditions() {
		rows = append(rows, conditionRow(c))
	}
	if err := a.PrintTable("CONDITION STATE REASON", rows); err != nil {
		return err
	}
	fmt.Fprintln(a.Out)
	if len(r.GetRuntimeHandlers()) == 0 {
		_, err := fmt.Fprintln(a.Out, "The runtime says nothing of what its handlers can do.")
		return err
	}
	rows = nil
	for _, h := range r.GetRuntimeHandlers() {
		name := h.Name
		if name == "" {
			name = "(default)"
		}
		rows = append(rows, []string{name, yes(h.Features.GetRecursiveReadOnlyMounts()), yes(h.Features.GetUserNamespaces())})
	}
	if err := a.PrintTable("HANDLER RECURSIVE-READ-ONLY USER-NAMESPACES", rows); err != nil {
		return err
	}
	return a.printOwn(r.GetInfo())
}

// printOwn tells how davitd keeps images, and which configuration is in force;
// other runtimes do not say.
func (a app) printOwn(info map[string]string) error {
	var config struct {
		ImageLayers   string `json:"imageLayers"`
		Configuration struct {
			File        string    `json:"file"`
			ReadAt      time.Time `json:"readAt"`
			Error       string    `json:"error"`
			NeedRestart []string  `json:"needRestart"`
		} `json:"configuration"`
	}
	if json.Unmarshal([]byte(info["config"]), &config) != nil || config.ImageLayers == "" {
		return nil
	}
	_, err := fmt.Fprintf(a.Out, "\nImage layers are kept as %s.\n", console.OneLine(config.ImageLayers))
	c := config.Configuration
	if err != nil || c.File == "" {
		return err
	}
	said := "is in force."
	if c.Error != "" {
		said = "is wrong, and what it said before in force. " + c.Error
	} else if len(c.NeedRestart) > 0 {
		said = "is in force; after a restart of davitd also " + strings.Join(c.NeedRestart, ", ") + "."
	}
	_, err = fmt.Fprintf(a.Out, "The configuration %s, read %s, %s\n", console.OneLine(c.File), c.ReadAt.Local().Format(time.DateTime), console.OneLine(said))
	return err
}

// conditionRow tells a condition. The two that the CRI defines decide whether
// a node is ready; any other is a runtime's own, and is shown as it stands.
//
// CRI: api.proto, RuntimeCondition.
func conditionRow(c *runtimeapi.RuntimeCondition) []string {
	kind, state := c.Type, fmt.Sprint(c.Status)
	if c.Type == runtimeapi.RuntimeReady || c.Type == runtimeapi.NetworkReady {
		kind, state = strings.TrimSuffix(c.Type, "Ready"), "ready"
		if !c.Status {
			state = "not ready"
		}
	}
	return []string{kind, state, console.Dash(console.JoinNonEmpty(": ", c.Reason, plainMessage(c.Message)))}
}

// plainMessage is a condition's message; containerd's are JSON objects.
func plainMessage(message string) string {
	var parts map[string]string
	if json.Unmarshal([]byte(message), &parts) != nil {
		return console.OneLine(message)
	}
	var all []string
	for _, key := range slices.Sorted(maps.Keys(parts)) {
		all = append(all, key+": "+parts[key])
	}
	return strings.Join(all, "; ")
}

// ready is an error that names what is not, with the runtime's reason.
func ready(conditions []*runtimeapi.RuntimeCondition) error {
	var not []string
	for _, c := range conditions {
		if !c.Status && (c.Type == runtimeapi.RuntimeReady || c.Type == runtimeapi.NetworkReady) {
			not = append(not, strings.TrimSuffix(c.Type, "Ready")+": "+console.JoinNonEmpty(": ", c.Reason, c.Message))
		}
	}
	if len(not) > 0 {
		return fmt.Errorf("not ready: %s", strings.Join(not, "; "))
	}
	return nil
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
