// Package images has davit's commands about images. Those that the CRI has
// calls for work with any runtime, the rest with davitd, by its own service.
package images

import (
	"github.com/spf13/cobra"

	"github.com/davit-runtime/davit/cmd/davit/console"
)

// commands have the console that they work on.
type commands struct{ *console.Console }

// Commands returns the commands; each expects that c.Begin was called.
func Commands(c *console.Console) []*cobra.Command {
	all := commands{c}
	return []*cobra.Command{all.imagesCommand(), all.pullCommand(), all.rmiCommand()}
}
