// Package why has davit why: what is wrong with a pod or container, step by step,
// as davitd remembers it.
package why

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	callv1 "github.com/davit-runtime/davit/api/call/v1"
	"github.com/davit-runtime/davit/cmd/davit/console"
)

// command has the console that it works on.
type command struct{ *console.Console }

// Command returns davit why; it expects that c.Begin was called.
func Command(c *console.Console) *cobra.Command {
	request := &callv1.ListRequest{}
	cmd := &cobra.Command{
		Use:   "why [POD|CONTAINER|IMAGE]",
		Short: "Tell why a pod or container is not as it should be: calls that fail, failed or were slow, step by step",
		Long: `Tell why a pod or container is not as it should be: how its containers ended, and the calls about it that are under way, and
those that failed or took a second or more, with their steps, how long each took, and the program that failed and what it said.
POD is namespace/name, a name, or the beginning of an ID; pods that could not be made are found by their names, and images as they
were asked for. Without it: all calls.

davitd remembers the last failure and the last slow success of each kind, until it is restarted.

davitd only. With -o json: the message davit.call.v1.ListResponse.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				request.Of = args[0]
			}
			return command{c}.explain(cmd.Context(), request)
		},
	}
	cmd.Flags().StringVarP(&request.Container, "container", "c", "", "only the pod's container of this `NAME`")
	return cmd
}

func (c command) explain(ctx context.Context, request *callv1.ListRequest) error {
	ctx, cancel := c.Call(ctx, 0)
	defer cancel()
	r, err := c.Calls().List(ctx, request)
	if err != nil {
		return c.Told(ctx, "why", err)
	}
	if c.JSON() {
		return c.PrintMessage(r)
	}
	there := false
	if request.Of != "" {
		if there, err = c.printState(ctx, request); err != nil {
			return err
		}
	}
	switch {
	case len(r.Calls) == 0 && request.Of == "":
		_, err = fmt.Fprintln(c.Out, "no call failed or was slow since davitd started, and none is under way")
	case len(r.Calls) == 0 && !there:
		return &console.NotFound{What: "pod, container or call about", Ref: request.Of, Hint: "davit pods, davit ps -a and davit why"}
	case len(r.Calls) == 0:
		_, err = fmt.Fprintln(c.Out, "no call about it failed or was slow since davitd started, and none is under way")
	}
	for _, call := range r.Calls {
		if err == nil {
			err = c.printCall(call)
		}
	}
	return err
}

// printState tells of the pods that a request means, and of those of their
// containers that do not run. It reports whether there are any.
func (c command) printState(ctx context.Context, request *callv1.ListRequest) (there bool, err error) {
	pods, err := c.Client.Pods(ctx, nil)
	if err != nil {
		return false, fmt.Errorf("pods: %w", err)
	}
	containers, err := c.Client.Containers(ctx, nil)
	if err != nil {
		return false, fmt.Errorf("containers: %w", err)
	}
	of := request.Of
	for _, p := range pods {
		name := p.Metadata.GetNamespace() + "/" + p.Metadata.GetName()
		named := of == name || of == p.Metadata.GetName() || begins(p.Id, of)
		mine := slices.DeleteFunc(slices.Clone(containers), func(ctr *runtimeapi.Container) bool {
			return ctr.PodSandboxId != p.Id || request.Container != "" && ctr.Metadata.GetName() != request.Container ||
				!named && ctr.Metadata.GetName() != of && !begins(ctr.Id, of)
		})
		if !named && len(mine) == 0 {
			continue
		}
		there = true
		state := "is ready"
		if p.State != runtimeapi.PodSandboxState_SANDBOX_READY {
			state = "is not ready"
		}
		fmt.Fprintf(c.Out, "pod %s (%s) %s\n", name, console.Short(p.Id), state)
		for _, ctr := range mine {
			text, err := c.containerState(ctx, ctr)
			if err != nil {
				return there, err
			}
			fmt.Fprintf(c.Out, "  container %s (%s) %s\n", ctr.Metadata.GetName(), console.Short(ctr.Id), text)
		}
	}
	if there {
		_, err = fmt.Fprintln(c.Out)
	}
	return there, err
}

func begins(id, of string) bool { return len(of) >= 3 && strings.HasPrefix(id, of) }

func (c command) containerState(ctx context.Context, ctr *runtimeapi.Container) (string, error) {
	if ctr.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
		return "runs", nil
	}
	r, err := c.Client.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ctr.Id})
	if err != nil {
		return "", fmt.Errorf("container %s: %w", console.Short(ctr.Id), err)
	}
	s := r.GetStatus()
	switch s.GetState() {
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		text := fmt.Sprintf("exited %s ago with code %d, %s", console.Age(s.GetFinishedAt()), s.GetExitCode(), s.GetReason())
		return console.JoinNonEmpty(": ", text, console.OneLine(s.GetMessage())), nil
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return "is made and was not started", nil
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return "runs", nil
	}
	return "is in an unknown state", nil
}

func (c command) printCall(call *callv1.Call) error {
	fmt.Fprintf(c.Out, "%s %s: %s\n", call.Method, subject(call.Subject), outcome(call))
	if call.Error != "" {
		fmt.Fprintf(c.Out, "  %s: %s\n", call.Code, console.OneLine(call.Error))
	}
	if err := c.printSteps(call.Steps); err != nil {
		return err
	}
	_, err := fmt.Fprintln(c.Out)
	return err
}

// printSteps prints steps, aligned, each below the one that it is a part of. The
// program that one ran is told where it may be to blame, with what it said.
func (c command) printSteps(steps []*callv1.Step) error {
	names, widest, within := make([]string, len(steps)), 0, nesting{}
	for i, s := range steps {
		names[i] = strings.Repeat("  ", within.depth(s)) + console.OneLine(s.Name)
		widest = max(widest, utf8.RuneCountInString(names[i]))
	}
	for i, s := range steps {
		state := ""
		switch {
		case s.UnderWay:
			state = "under way"
		case s.Failed:
			state = "failed"
		}
		lines := []string{strings.TrimRight(fmt.Sprintf("  %-*s  %9s  %s", widest, names[i], duration(s.Took), state), " ")}
		if s.Command != "" && (state != "" || s.Took.AsDuration() >= time.Second) {
			lines = append(lines, "      $ "+console.OneLine(s.Command))
		}
		for text := range strings.Lines(s.Said) {
			if text = console.OneLine(text); text != "" {
				lines = append(lines, "      | "+text)
			}
		}
		if _, err := fmt.Fprintln(c.Out, strings.Join(lines, "\n")); err != nil {
			return err
		}
	}
	return nil
}

// outcome says in a few words how a call went, and when.
func outcome(call *callv1.Call) string {
	took := duration(call.Took)
	if call.UnderWay {
		return "under way for " + took
	}
	ended := call.Began.AsTime().Add(call.Took.AsDuration())
	text := fmt.Sprintf("failed %s ago after %s", ago(ended), took)
	if call.Error == "" {
		text = fmt.Sprintf("took %s, %s ago", took, ago(ended))
	}
	if call.Times > 1 {
		text += fmt.Sprintf(", the last of %d times in %s", call.Times, ago(call.FirstBegan.AsTime()))
	}
	if s := call.Succeeded; s != nil {
		text += fmt.Sprintf("; it succeeded %s ago", ago(s.AsTime()))
	}
	return text
}

func ago(t time.Time) string { return console.Age(t.UnixNano()) }

func subject(s *callv1.Subject) string {
	var parts []string
	if s.GetContainer() != "" || s.GetContainerId() != "" {
		parts = append(parts, "container "+named(s.GetContainer(), s.GetContainerId()))
	}
	if s.GetPod() != "" {
		parts = append(parts, "pod "+named(s.GetNamespace()+"/"+s.GetPod(), s.GetPodId()))
	} else if s.GetPodId() != "" {
		parts = append(parts, "pod "+named("", s.GetPodId()))
	}
	if len(parts) == 0 || s.GetContainer() == "" {
		if s.GetImage() != "" {
			parts = append([]string{"image " + s.GetImage()}, parts...)
		}
	}
	return strings.Join(parts, ", ")
}

func named(name, id string) string {
	switch {
	case name == "":
		return console.Short(id)
	case id == "":
		return name
	}
	return name + " (" + console.Short(id) + ")"
}

// duration has about three digits.
func duration(d *durationpb.Duration) string {
	t := d.AsDuration()
	switch {
	case t >= time.Minute:
		return t.Round(time.Second).String()
	case t >= time.Second:
		return t.Round(10 * time.Millisecond).String()
	}
	return fmt.Sprintf("%.1fms", float64(t.Microseconds())/1000)
}

// A nesting is the ends of the steps around the one that is looked at.
type nesting struct{ ends []time.Time }

// depth is in how many of the steps before s, given in order, s lies.
func (n *nesting) depth(s *callv1.Step) int {
	end := s.Began.AsTime().Add(s.Took.AsDuration())
	for len(n.ends) > 0 && end.After(n.ends[len(n.ends)-1]) {
		n.ends = n.ends[:len(n.ends)-1]
	}
	depth := len(n.ends)
	n.ends = append(n.ends, end)
	return depth
}
