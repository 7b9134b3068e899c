// Command target is what the pods of the kubelet's tests run where busybox is
// not enough: a server that probes of all kinds and hooks can ask.
//
//	target [-http PORT] [-tcp PORT] [-grpc PORT] [-record FILE]
//
// By HTTP it answers /healthz, /fail (500 from the third request on), /name
// (the host's name) and /hook (a line "http" in FILE). What connects by TCP
// gets back what it sends. It ends with 0 on SIGTERM, after a line "term".
package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	web := flag.Int("http", 0, "`port` for HTTP")
	raw := flag.Int("tcp", 0, "`port` for TCP")
	rpc := flag.Int("grpc", 0, "`port` for gRPC health checks")
	record := flag.String("record", "", "`file` that tells what happened")
	flag.Parse()
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	ended := make(chan error, 1)
	serve(*web, ended, func(l net.Listener) error { return http.Serve(l, handler(*record)) })
	serve(*raw, ended, echo)
	serve(*rpc, ended, func(l net.Listener) error {
		s := grpc.NewServer()
		grpc_health_v1.RegisterHealthServer(s, health.NewServer())
		return s.Serve(l)
	})
	select {
	case err := <-ended:
		fmt.Fprintln(os.Stderr, "target:", err)
		os.Exit(1)
	case <-term:
		note(*record, "term")
	}
}

// serve listens on a port of all addresses; on none if it is 0.
func serve(port int, ended chan<- error, run func(net.Listener) error) {
	if port == 0 {
		return
	}
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		ended <- err
		return
	}
	go func() { ended <- run(l) }()
}

func handler(record string) http.Handler {
	var asked atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/fail", func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) > 2 {
			http.Error(w, "no longer", http.StatusInternalServerError)
		}
	})
	mux.HandleFunc("/name", func(w http.ResponseWriter, _ *http.Request) {
		name, _ := os.Hostname()
		fmt.Fprintln(w, name)
	})
	mux.HandleFunc("/hook", func(http.ResponseWriter, *http.Request) { note(record, "http") })
	return mux
}

func echo(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}()
	}
}

// note adds a line to a file, whole even if others write there.
func note(file, line string) {
	if file == "" {
		return
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		fmt.Fprintln(os.Stderr, "target:", err)
		return
	}
	_, _ = fmt.Fprintln(f, line)
	_ = f.Close()
}
