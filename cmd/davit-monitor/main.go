// Davit-monitor is keeper, monitor and holder of the containers of one state
// directory; which one, its first argument says.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/davit-runtime/davit/internal/holder"
	"github.com/davit-runtime/davit/internal/keeper"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/monitor/server"
)

// version is set by the linker.
var version = "0.1.0-dev"

func main() {
	if len(os.Args) < 2 {
		usage(os.Stderr, 2)
	}
	mode := os.Args[1]
	switch mode {
	case "hold":
		holder.Run()
		return
	case "help", "--help", "-h":
		usage(os.Stdout, 0)
	case "version", "--version":
		fmt.Println("davit-monitor", version)
		return
	case "check":
		if err := keeper.Check(os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, "davit-monitor", version+":", err)
			os.Exit(1)
		}
		fmt.Println(version)
		return
	}
	flags := flag.NewFlagSet(mode, flag.ExitOnError)
	state := flags.String("state", "/run/davit", "state directory, on a tmpfs")
	detach := flags.Bool("detach", false, "keep: leave a keeper running in a session of its own")
	wait := flags.Bool("wait", false, "keep: stand by while another keeper has the state directory")
	_ = flags.Parse(os.Args[2:])
	// Many of these may idle for years beside what they look after: the heap
	// stays small, at the price of more frequent collections of very little.
	debug.SetGCPercent(40)
	debug.SetMemoryLimit(64 << 20)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("mode", mode, "pid", os.Getpid())
	var err error
	switch mode {
	case "keep":
		if *detach {
			err = leave(*state)
			break
		}
		name("davit-keeper")
		err = keeper.Run(keeper.Options{Dir: *state, Binary: "/proc/self/exe", Version: version, Wait: *wait, Log: log})
	case "serve":
		// What is sent to the whole service is meant for the keeper. It is not ignored:
		// what is started here would inherit that.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
		name("davit-monitor")
		err = server.Run(*state, 3, 4, log)
	case "replace":
		err = replace(*state)
	default:
		usage(os.Stderr, 2)
	}
	if err != nil {
		log.Error("ended", "error", err)
		os.Exit(1)
	}
}

// name is what ps, top and the log of the OOM killer show of this process,
// which was started as /proc/self/exe.
func name(name string) { _ = os.WriteFile("/proc/self/comm", []byte(name), 0) }

// replace puts this program in the place of the keeper and monitor that run.
func replace(state string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	replaced, err := monitor.Replace(ctx, self, state)
	if err == nil && !replaced {
		fmt.Println("nothing to replace")
	}
	return err
}

// leave starts the keeper as nobody's child and in its own session.
func leave(state string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	_ = os.Unsetenv("NOTIFY_SOCKET") // its service is not the caller's
	// Nor is the caller's protection from the OOM killer meant for containers,
	// which start with what the keeper was started with.
	if adj, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil && bytes.HasPrefix(adj, []byte("-")) {
		_ = os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0)
	}
	_, err = os.StartProcess(self, []string{os.Args[0], "keep", "--state", state}, &os.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	return err
}

func usage(to *os.File, code int) {
	fmt.Fprint(to, `usage: davit-monitor keep [--state DIR] [--wait]   be the parent of a node's containers
       davit-monitor replace [--state DIR]         take the place of the one that runs
       davit-monitor version
serve, hold and check are for keep itself
`)
	os.Exit(code)
}
