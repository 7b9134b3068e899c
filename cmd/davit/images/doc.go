// Package images has davit's commands about images. Those that the CRI has
// calls for work with any runtime, the rest with davitd, by its own service.
package images

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/davit-runtime/davit/cmd/davit/console"
)

// commands have the console that they work on.
type commands struct{ *console.Console }

// Commands returns the commands; each expects that c.Begin was called.
func Commands(c *console.Console) []*cobra.Command {
	all := commands{c}
	images, save, imported, remove, explain := all.imagesCommand(), all.saveCommand(), all.importCommand(), all.rmiCommand(), all.explainCommand()
	images.ValidArgsFunction, explain.ValidArgsFunction = c.Complete(console.First(all.names)), c.Complete(console.First(all.names))
	save.ValidArgsFunction, remove.ValidArgsFunction = c.Complete(all.names), c.Complete(all.names)
	imported.ValidArgsFunction = cobra.FixedCompletions([]cobra.Completion{"containerd", "cri-o"}, cobra.ShellCompDirectiveNoFileComp)
	return []*cobra.Command{
		images, all.pullCommand(), remove, all.pullsCommand(), all.dfCommand(),
		group("image", "Load, save and import images: as files, or from another runtime's store", all.loadCommand(), save, imported),
		group("store", "Look after davitd's image store", all.checkCommand()),
		group("registry", "Registries' configuration", explain),
	}
}

// names has the names of all images.
func (c commands) names(ctx context.Context, _ []string) ([]string, error) {
	all, err := List(ctx, c.Console)
	var names []string
	for _, i := range all {
		names = append(names, i.RepoTags...)
	}
	return names, err
}

// group is a command that only others are below.
func group(name, short string, below ...*cobra.Command) *cobra.Command {
	var names []string
	for _, c := range below {
		names = append(names, c.Name())
	}
	g := &cobra.Command{
		Use:   name + " " + strings.Join(names, "|"),
		Short: short,
		Args:  func(*cobra.Command, []string) error { return errors.New("it does nothing itself") },
		RunE:  func(*cobra.Command, []string) error { return nil },
	}
	g.AddCommand(below...)
	return g
}
