package console

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// completeWait is how long a person who has pressed the tab key waits.
const completeWait = 2 * time.Second

// Complete offers what list returns, given the arguments so far and without
// those, to shells. The runtime is asked; if it does not answer there is nothing
// to offer, and that is not told.
func (c *Console) Complete(list func(ctx context.Context, args []string) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completeWait)
		defer cancel()
		if c.Dial(cmd) != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all, _ := list(ctx, args)
		given := map[string]bool{}
		for _, arg := range args {
			given[arg] = true
		}
		var offered []cobra.Completion
		for _, name := range all {
			if strings.HasPrefix(name, begun) && !given[name] {
				offered = append(offered, name)
			}
		}
		return offered, cobra.ShellCompDirectiveNoFileComp
	}
}

// First is list for the first argument only.
func First(list func(ctx context.Context, args []string) ([]string, error)) func(ctx context.Context, args []string) ([]string, error) {
	return func(ctx context.Context, args []string) ([]string, error) {
		if len(args) > 0 {
			return nil, nil
		}
		return list(ctx, args)
	}
}
