// Package cristream is the client's side of what a container runtime answers
// to Exec, Attach and PortForward of the Container Runtime Interface: a URL,
// at which a session is to be had by WebSocket or by SPDY.
//
//	open := func(ctx context.Context) (string, error) {
//		r, err := runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"ls", "/"}, Stdout: true})
//		return r.GetUrl(), err
//	}
//	var dialer cristream.Dialer
//	err := dialer.Exec(ctx, open, cristream.Streams{Stdout: os.Stdout})
//	var exit *cristream.ExitError
//	if errors.As(err, &exit) {
//		os.Exit(exit.Code)
//	}
//
// The streams must be those that the request asked for. The same paths of a
// kubelet's own server work as well, with [At] and what its authentication
// needs in [Dialer].
//
// How a session ended is always told: a connection that is lost before the
// peer has said how the command ended is a [LostError], never a success. The
// package logs nothing and retries nothing. It depends on nothing of davit's
// daemon, nor on the CRI's messages.
package cristream
