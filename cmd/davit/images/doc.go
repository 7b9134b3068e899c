// Package images has davit's commands about images. Those that the CRI has
// calls for work with any runtime, the rest with davitd, by its own service.
package images

import (
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
	return []*cobra.Command{
		all.imagesCommand(), all.pullCommand(), all.rmiCommand(), all.pullsCommand(), all.dfCommand(),
		group("image", "Load, save and import images: as files, or from another runtime's store",
			all.loadCommand(), all.saveCommand(), all.importCommand()),
		group("store", "Look after davitd's image store", all.checkCommand()),
		group("registry", "Registries' configuration", all.explainCommand()),
	}
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
