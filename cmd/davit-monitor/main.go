// Davit-monitor is keeper, monitor and holder of the containers of one state
// directory; which one, its first argument says.
package main

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"syscall"

	"github.com/davit-runtime/davit/internal/holder"
	"github.com/davit-runtime/davit/internal/keeper"
	"github.com/davit-runtime/davit/internal/monitor/server"
)

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	mode := os.Args[1]
	if mode == "hold" {
		holder.Run()
		return
	}
	flags := flag.NewFlagSet(mode, flag.ExitOnError)
	state := flags.String("state", "/run/davit", "state directory, on a tmpfs")
	detach := flags.Bool("detach", false, "keep: leave a keeper running in a session of its own")
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
		err = keeper.Run(*state, "/proc/self/exe", log)
	case "serve":
		err = server.Run(*state, 3, 4, log)
	default:
		usage()
	}
	if err != nil {
		log.Error("ended", "error", err)
		os.Exit(1)
	}
}

// leave starts the keeper as nobody's child and in its own session.
func leave(state string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	_, err = os.StartProcess(self, []string{os.Args[0], "keep", "--state", state}, &os.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	return err
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: davit-monitor keep|serve|hold [--state DIR]")
	os.Exit(2)
}
