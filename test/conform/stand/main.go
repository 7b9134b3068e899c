// Command stand stands in, inside test images, for programs that the
// conformance suite expects there. Its name in the image says which.
package main

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	name := filepath.Base(os.Args[0])
	code := 0
	switch name {
	case "nginx", "httpd":
		code = web(name, os.Args[1:])
	case "nonewprivs":
		fmt.Printf("Effective uid: %d\n", os.Geteuid())
	case "pgrep":
		code = pgrep(os.Args[len(os.Args)-1])
	case "ipcs":
		code = ipcs()
	default:
		code = 127
	}
	os.Exit(code)
}

// web serves a page: web PORT BANNER.
func web(name string, args []string) int {
	if len(args) < 2 {
		return 2
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	pidFile := filepath.Join("/var/run", name+".pid")
	if err := os.WriteFile(pidFile, fmt.Appendln(nil, os.Getpid()), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	fmt.Fprintf(os.Stderr, "%s: %s (port %s)\n", name, args[1], args[0])
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "<!DOCTYPE html><html><head><title>Welcome to nginx!</title></head><body>It works!</body></html>")
	})
	ended := make(chan error, 1)
	go func() { ended <- http.ListenAndServe(":"+args[0], page) }()
	select {
	case <-stop:
		return 0
	case err := <-ended:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
}

// pgrep prints the processes whose name contains pattern.
func pgrep(pattern string) int {
	code := 1
	files, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, file := range files {
		pid := filepath.Base(filepath.Dir(file))
		comm, err := os.ReadFile(file)
		if err == nil && pid != fmt.Sprint(os.Getpid()) && strings.Contains(string(comm), pattern) {
			fmt.Println(pid)
			code = 0
		}
	}
	return code
}

// ipcs lists shared memory segments. kernel: /proc/sysvipc/shm.
func ipcs() int {
	f, err := os.Open("/proc/sysvipc/shm")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer f.Close()
	fmt.Println("------ Shared Memory Segments --------\nkey        shmid      perms      bytes")
	for s := bufio.NewScanner(f); s.Scan(); {
		var key int64
		var id, perms int
		var bytes uint64
		if n, _ := fmt.Sscan(s.Text(), &key, &id, &perms, &bytes); n == 4 {
			fmt.Printf("0x%08x %-10d %-10d %d\n", uint32(key), id, perms, bytes)
		}
	}
	return 0
}
