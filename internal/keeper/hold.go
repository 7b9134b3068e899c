package keeper

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// Hold is the first process of a shared PID namespace: it reaps what is left
// to it and ends on SIGTERM. Inside the pod it is called "pause", as the first
// process of such pods is everywhere else.
func Hold() {
	_ = os.WriteFile("/proc/self/comm", []byte("pause"), 0)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM)
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGPIPE)
	for {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
		if <-signals == unix.SIGTERM {
			return
		}
	}
}
