package images

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	imagev1 "github.com/davit-runtime/davit/api/image/v1"
	"github.com/davit-runtime/davit/cmd/davit/console"
)

func (c commands) explainCommand() *cobra.Command {
	var probe bool
	var creds string
	cmd := &cobra.Command{
		Use:   "explain IMAGE",
		Short: "Show from where an image would be pulled, and which file says so",
		Long: `Show from where an image would be pulled: the endpoints in the order they are asked, what was said of each, and by which line
of which file. With --probe each is asked for the image, as a pull would; nothing is fetched but its manifest.

davitd only. With -o json: the message davit.image.v1.ExplainResponse. Exit code 1: the image is blocked, or, with --probe, none has it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			auth, err := c.parseCreds(creds)
			if err != nil {
				return err
			}
			request := &imagev1.ExplainRequest{Image: args[0], Probe: probe}
			if auth != nil {
				request.Credentials = &imagev1.Credentials{Username: auth.Username, Password: auth.Password}
			}
			return c.explain(cmd.Context(), request)
		},
	}
	cmd.Flags().BoolVar(&probe, "probe", false, "ask each endpoint for the image")
	cmd.Flags().StringVar(&creds, "creds", "", "with --probe, USER:PASSWORD for the registry; - reads it from standard input")
	return cmd
}

func (c commands) explain(ctx context.Context, request *imagev1.ExplainRequest) error {
	ctx, cancel := c.Call(ctx, 0)
	defer cancel()
	r, err := c.Own().Explain(ctx, request)
	if err != nil {
		return c.Told(ctx, "explain "+request.Image, err)
	}
	if c.JSON() {
		err = c.PrintMessage(r)
	} else {
		var text strings.Builder
		for _, route := range r.Routes {
			writeRoute(&text, route)
		}
		_, err = io.WriteString(c.Out, text.String())
	}
	if err == nil && !slices.ContainsFunc(r.Routes, func(route *imagev1.Route) bool { return usable(route, request.Probe) }) {
		err = console.ExitCode(1)
	}
	return err
}

// usable reports whether an image can come by a route, as far as was asked.
func usable(r *imagev1.Route, probed bool) bool {
	return r.Blocked == nil && slices.ContainsFunc(r.Endpoints, func(e *imagev1.Endpoint) bool { return !probed || e.Probe != nil && e.Probe.Error == "" })
}

func writeRoute(w io.Writer, r *imagev1.Route) {
	fmt.Fprintln(w, r.Image)
	if r.Short != nil {
		fmt.Fprintf(w, "   by its short name: %s\n", settingText(r.Short))
	}
	if r.Blocked != nil {
		fmt.Fprintf(w, "   blocked: %s\n", settingText(r.Blocked))
	}
	for i, e := range r.Endpoints {
		fmt.Fprintf(w, "%2d %s  %s\n", i+1, e.Url, roles(e))
		for _, s := range e.Settings {
			fmt.Fprintf(w, "      %s\n", settingText(s))
		}
		if p := e.Probe; p != nil {
			fmt.Fprintf(w, "      %s (%v)\n", answerText(p), p.Took.AsDuration().Round(time.Millisecond))
		}
	}
}

func answerText(p *imagev1.Probe) string {
	if p.Error != "" {
		return "fails: " + console.OneLine(p.Error)
	}
	return console.JoinNonEmpty(": ", "has it", p.Digest)
}

func settingText(s *imagev1.Setting) string {
	return fmt.Sprintf("%s = %s  (%s)", s.Name, s.Value, s.From)
}

// roles says what an endpoint is asked for.
func roles(e *imagev1.Endpoint) string {
	var all []string
	for _, role := range []struct {
		is   bool
		name string
	}{{e.Home, "registry"}, {!e.Home, "mirror"}, {!e.Resolve, "no tags"}, {!e.Pull, "tags only"}} {
		if role.is {
			all = append(all, role.name)
		}
	}
	if e.Plain {
		all = append(all, "http if it has no https")
	}
	if e.Namespace != "" {
		all = append(all, "for "+e.Namespace)
	}
	if e.Proxy != "" {
		all = append(all, "by proxy "+e.Proxy)
	}
	return strings.Join(all, ", ")
}
