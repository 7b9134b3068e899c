// Command demo is what `make demo` runs: a pod from its manifest to its end,
// on a davitd and a registry of its own, in private namespaces. It shows what
// happens as it happens, and ends with 0 only if all of it truly did.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/davit-runtime/davit/internal/testkit"
)

// limit is for everything, once the programs are built.
const limit = 30 * time.Second

func main() {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the demonstration makes containers, so it needs root: sudo make demo")
		os.Exit(2)
	}
	start := time.Now()
	code, inside := testkit.Inside()
	if !inside {
		if code == 0 {
			fmt.Printf("\nAll of it happened, in %.1f s. Nothing is left.\n", time.Since(start).Seconds())
		}
		os.Exit(code)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	d := &demo{start: time.Now()}
	if err := d.run(ctx); err != nil {
		fmt.Printf("\nNOT as it should be: %v\n", err)
		d.explain()
		d.abandon()
		os.Exit(1)
	}
}

// A demo is one demonstration under way.
type demo struct {
	start    time.Time
	dir      string // everything of this run is below it
	registry *testkit.Registry
	daemon   *testkit.Daemon
	client   *testkit.Client
	baseline *testkit.Baseline
	podID    string
}

// step announces the next thing and does it.
func (d *demo) step(text string, do func() error) error {
	began := time.Now()
	fmt.Printf("\n\033[1m[%5.1f s] %s\033[0m\n", time.Since(d.start).Seconds(), text)
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", text, err)
	}
	fmt.Printf("          %s\n", took(began))
	return nil
}

func took(since time.Time) string {
	return fmt.Sprintf("(%d ms)", time.Since(since).Milliseconds())
}

func say(format string, args ...any) { fmt.Printf("          "+format+"\n", args...) }

// explain shows the end of davitd's log.
func (d *demo) explain() {
	if d.daemon == nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(d.daemon.Log()), "\n")
	fmt.Println("\ndavitd's log ends with:")
	for _, line := range lines[max(0, len(lines)-15):] {
		fmt.Println("  " + line)
	}
}

// abandon clears away after a failure, as far as it goes.
func (d *demo) abandon() {
	if d.daemon != nil {
		if err := d.daemon.Close(); err != nil {
			fmt.Println("clearing away:", err)
		}
	}
	if d.registry != nil {
		d.registry.Stop()
	}
	if d.dir != "" {
		_ = os.RemoveAll(d.dir)
	}
}
