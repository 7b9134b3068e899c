package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/davit-runtime/davit/cmd/davit/console"
)

// What shells offer for commands' arguments, and for the flag -c.
func (a app) completions(root *cobra.Command) {
	arguments := map[string]cobra.CompletionFunc{
		"logs": a.Complete(console.First(a.podNames)), "exec": a.Complete(console.First(a.podNames)), "attach": a.Complete(console.First(a.podNames)),
		"why": a.Complete(console.First(a.podNames)), "inspect": a.Complete(console.First(a.podNames)), "port-forward": a.Complete(console.First(a.podNames)),
		"debug": a.Complete(console.First(a.podNames)), "top": a.Complete(console.First(a.podNames)), "cp": a.completeCopy,
		"stop": a.Complete(a.podNames), "rm": a.Complete(a.podNames),
		"play": cobra.FixedCompletions([]cobra.Completion{"yaml", "yml", "json"}, cobra.ShellCompDirectiveFilterFileExt),
	}
	for _, c := range root.Commands() {
		if offer := arguments[c.Name()]; offer != nil {
			c.ValidArgsFunction = offer
		} else if c.ValidArgsFunction == nil {
			c.ValidArgsFunction = cobra.NoFileCompletions
		}
		if c.Flags().Lookup("container") != nil {
			register(c, "container", a.Complete(a.containerNames))
		}
	}
	register(root, "output", cobra.FixedCompletions([]cobra.Completion{"json"}, cobra.ShellCompDirectiveNoFileComp))
}

// completeCopy offers pods, with a colon, and where none fits local files.
func (a app) completeCopy(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	pods, _ := a.Complete(a.podNames)(cmd, nil, begun)
	for i := range pods {
		pods[i] += ":"
	}
	return pods, cobra.ShellCompDirectiveNoSpace
}

// register fails for flags that there are not, or twice for one.
func register(c *cobra.Command, flag string, offer cobra.CompletionFunc) {
	if err := c.RegisterFlagCompletionFunc(flag, offer); err != nil {
		panic(err)
	}
}

// podNames has each pod's name, with its namespace if another has the same.
func (a app) podNames(ctx context.Context, _ []string) ([]string, error) {
	pods, err := a.listPods(ctx, nil)
	if err != nil {
		return nil, err
	}
	pods = newestOfEach(pods)
	count := map[string]int{}
	for _, p := range pods {
		count[p.Metadata.GetName()]++
	}
	var names []string
	for _, p := range pods {
		name := p.Metadata.GetName()
		if count[name] > 1 {
			name = podName(p.Metadata)
		}
		names = append(names, name)
	}
	return names, nil
}

// containerNames has the containers of the pod that is the first argument.
func (a app) containerNames(ctx context.Context, args []string) ([]string, error) {
	if len(args) == 0 {
		return nil, nil
	}
	found, err := a.findContainers(ctx, args[0], "")
	var names []string
	for _, c := range found {
		names = append(names, containerName(c))
	}
	return names, err
}
