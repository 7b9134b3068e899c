package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/criclient/cristream"
)

func (a app) forwardCommand() *cobra.Command {
	var s session
	var addresses []string
	cmd := &cobra.Command{
		Use:   "port-forward POD [LOCAL:]REMOTE...",
		Short: "Make ports of a pod ports of this machine",
		Long: `Listen on local ports, and connect whoever comes to ports of a pod, until interrupted or until the pod is gone.
LOCAL is REMOTE if left out, and any free port if empty or 0.`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := s.dialer()
			if err != nil {
				return err
			}
			ports, err := parsePorts(args[1:])
			if err != nil {
				return err
			}
			pod, err := a.findPod(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			listeners, err := listen(ports, addresses)
			if err != nil {
				return err
			}
			return a.forward(cmd.Context(), d, pod, listeners)
		},
	}
	cmd.Flags().StringSliceVar(&addresses, "address", []string{"localhost"}, "addresses to listen on; localhost is those of both IPv4 and IPv6 that there are")
	s.dialFlags(cmd)
	return cmd
}

// A port of this machine, and the pod's.
type portPair struct{ local, remote uint16 }

func parsePorts(args []string) ([]portPair, error) {
	var ports []portPair
	for _, arg := range args {
		local, remote, both := strings.Cut(arg, ":")
		if !both {
			remote = arg
		}
		if local == "" {
			local = "0"
		}
		l, err1 := strconv.ParseUint(local, 10, 16)
		r, err2 := strconv.ParseUint(remote, 10, 16)
		if err1 != nil || err2 != nil || r == 0 {
			return nil, fmt.Errorf("port %q: want REMOTE or LOCAL:REMOTE, of 1 to 65535", arg)
		}
		ports = append(ports, portPair{uint16(l), uint16(r)})
	}
	return ports, nil
}

// A listening port, and the pod's behind it.
type listening struct {
	net.Listener
	remote uint16
}

// listen listens to all ports on all addresses, or to none.
func listen(ports []portPair, addresses []string) (all []listening, err error) {
	defer func() {
		if err != nil {
			for _, l := range all {
				_ = l.Close()
			}
			all = nil
		}
	}()
	for _, port := range ports {
		for _, address := range addresses {
			hosts, optional := []string{address}, ""
			if address == "localhost" {
				hosts, optional = []string{"127.0.0.1", "::1"}, "::1"
			}
			for _, host := range hosts {
				l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(int(port.local))))
				if err != nil && host == optional {
					continue // no IPv6 here, or IPv4's port is taken there
				}
				if err != nil {
					return all, err
				}
				all = append(all, listening{l, port.remote})
				port.local = uint16(l.Addr().(*net.TCPAddr).Port)
			}
		}
	}
	return all, nil
}

// forward serves all listeners until ctx ends, or one of them or the pod does.
func (a app) forward(ctx context.Context, d *cristream.Dialer, pod *runtimeapi.PodSandbox, listeners []listening) error {
	outer := ctx
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var serving sync.WaitGroup
	var printing sync.Mutex
	for _, l := range listeners {
		open := func(ctx context.Context) (string, error) {
			ctx, cancel := a.Call(ctx, 0)
			defer cancel()
			r, err := a.Client.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: pod.Id, Port: []int32{int32(l.remote)}})
			return r.GetUrl(), err
		}
		failed := func(err error) {
			if status.Code(err) == codes.NotFound {
				end(fmt.Errorf("pod %s is gone: %w", podName(pod.Metadata), err))
				return
			}
			printing.Lock()
			defer printing.Unlock()
			fmt.Fprintln(a.Err, a.Explain(fmt.Errorf("port %d: %w", l.remote, err)))
		}
		fmt.Fprintf(a.Out, "Forwarding from %s -> %d\n", l.Addr(), l.remote)
		serving.Go(func() {
			if err := d.Forward(ctx, open, l, l.remote, failed); err != nil {
				end(err)
			}
		})
	}
	serving.Wait()
	if outer.Err() != nil {
		return outer.Err()
	}
	return context.Cause(ctx)
}
