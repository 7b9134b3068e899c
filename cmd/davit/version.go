package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/davit-runtime/davit/cmd/davit/console"
	"github.com/davit-runtime/davit/criclient"
	"github.com/davit-runtime/davit/internal/endpoint"
)

// version is set when a release is built: -ldflags "-X main.version=…".
var version string

// versionTimeout is for all that davit version asks: who asks wants to know
// soon that a runtime hangs.
const versionTimeout = 10 * time.Second

func ownVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// versions is what davit version tells.
type versions struct {
	Davit             string         `json:"davit"`
	RuntimeName       string         `json:"runtimeName,omitempty"`
	RuntimeVersion    string         `json:"runtimeVersion,omitempty"`
	RuntimeAPIVersion string         `json:"runtimeApiVersion,omitempty"` // as the runtime says
	Runtime           *serviceChoice `json:"runtimeService,omitempty"`
	Images            *serviceChoice `json:"imageService,omitempty"`
	Problems          []string       `json:"problems,omitempty"`
}

// A serviceChoice is which version of the CRI is spoken to one service.
type serviceChoice struct {
	Endpoint string `json:"endpoint"`
	From     string `json:"from"`          // who names the endpoint
	CRI      string `json:"cri,omitempty"` // absent: none can be used
	Why      string `json:"why"`
}

func (a app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the versions of davit, of the runtime, and of the CRI between them",
		Long: `Show the versions of davit and of the runtime, where the runtime was found, and for each of its two services
which version of the CRI was chosen, and why. Without a runtime that can be used, the exit code is 1. With -o json: one object.`,
		Args: cobra.NoArgs,
		// What cannot be found or dialled is told after davit's own version.
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.CheckOutput() },
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Davit: ownVersion()}
			err := a.askVersions(cmd, &v)
			if err != nil {
				v.Problems = a.Explained(err)
			}
			return errors.Join(a.printVersions(v), err)
		},
	}
}

func (a app) askVersions(cmd *cobra.Command, v *versions) error {
	if err := a.Dial(cmd); err != nil {
		return err
	}
	if !cmd.Flags().Changed("timeout") {
		a.Timeout = versionTimeout
	}
	ctx, cancel := a.Call(cmd.Context(), 0)
	defer cancel()
	err := a.Client.Connect(ctx)
	v.Runtime = a.chosen(criclient.RuntimeService, a.Found.Runtime, err)
	v.Images = a.chosen(criclient.ImageService, a.Found.Image, err)
	if v.Runtime.CRI == "" {
		return err
	}
	return errors.Join(err, a.askName(ctx, v))
}

func (a app) askName(ctx context.Context, v *versions) error {
	r, err := a.Client.CheckVersion(ctx)
	if err != nil {
		return fmt.Errorf("version: %w", err)
	}
	v.RuntimeName, v.RuntimeVersion, v.RuntimeAPIVersion = r.RuntimeName, r.RuntimeVersion, r.RuntimeApiVersion
	return nil
}

// chosen tells what was settled for s; err is what Connect returned.
func (a app) chosen(s criclient.Service, at endpoint.Setting, err error) *serviceChoice {
	told := &serviceChoice{Endpoint: at.Address, From: at.From}
	if choice := a.Client.Choice(s); choice != nil {
		told.CRI, told.Why = string(choice.Version), reasonFor(choice)
		return told
	}
	told.Why = "it was not asked"
	for _, e := range console.Apart(err) {
		var none *criclient.NegotiationError
		if errors.As(e, &none) && none.Service == s {
			var answers []string
			for _, answer := range none.Answers {
				answers = append(answers, answer.String())
			}
			told.Why = strings.Join(answers, "; ")
		}
	}
	return told
}

// reasonFor says why a version was chosen, without the endpoint.
func reasonFor(c *criclient.Choice) string {
	var answers []string
	for _, answer := range c.Answers {
		answers = append(answers, answer.String())
	}
	if len(answers) == 1 {
		return "it is preferred, and " + answers[0]
	}
	return strings.Join(answers, "; ")
}

func (a app) printVersions(v versions) error {
	if a.JSON() {
		raw, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return console.WriteJSON(a.Out, raw)
	}
	rows := [][2]string{{"davit", v.Davit}}
	if v.RuntimeName != "" {
		rows = append(rows, [2]string{"runtime", v.RuntimeName + " " + v.RuntimeVersion})
	}
	for _, s := range []struct {
		name string
		told *serviceChoice
	}{{"endpoint", v.Runtime}, {"images", v.Images}} {
		if s.told != nil {
			cri := console.JoinNonEmpty(": ", s.told.CRI, s.told.Why)
			if s.told.CRI == "" {
				cri = "none can be used: " + s.told.Why
			}
			rows = append(rows, [2]string{s.name, fmt.Sprintf("%s (%s)", s.told.Endpoint, s.told.From)}, [2]string{"  CRI", cri})
		}
	}
	for _, r := range rows {
		if _, err := fmt.Fprintf(a.Out, "%-9s %s\n", r[0], r[1]); err != nil {
			return err
		}
	}
	return nil
}
