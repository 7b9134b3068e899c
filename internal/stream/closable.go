package stream

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// serveClosable serves the WebSocket protocol v5.channel.k8s.io, whose client
// can close standard input and go on reading. It is the only one that
// clients of today ask for, and the library does not serve it.
func (c *command) serveClosable(w http.ResponseWriter, r *http.Request, s *Server) {
	reads := func(asked bool) wsstream.ChannelType {
		if asked {
			return wsstream.ReadChannel
		}
		return wsstream.IgnoreChannel
	}
	writes := func(asked bool) wsstream.ChannelType {
		if asked {
			return wsstream.WriteChannel
		}
		return wsstream.IgnoreChannel
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: []wsstream.ChannelType{
			remotecommand.StreamStdIn:  reads(c.Stdin),
			remotecommand.StreamStdOut: writes(c.Stdout),
			remotecommand.StreamStdErr: writes(c.Stderr),
			remotecommand.StreamErr:    wsstream.WriteChannel,
			remotecommand.StreamResize: wsstream.ReadChannel,
		}},
	})
	conn.SetIdleTimeout(s.config.IdleTimeout)
	_, streams, err := conn.Open(w, r)
	if err != nil {
		return // the client has been told
	}
	defer func() { _ = conn.Close() }()
	first := remotecommand.StreamErr
	switch {
	case c.Stdout:
		first = remotecommand.StreamStdOut
	case c.Stderr:
		first = remotecommand.StreamStdErr
	}
	_, _ = streams[first].Write(nil) // tells clients that the session stands
	c.run(r.Context(), streams[remotecommand.StreamStdIn], streams[remotecommand.StreamStdOut], streams[remotecommand.StreamStdErr],
		decodeSizes(r.Context(), streams[remotecommand.StreamResize]))
	if text, err := json.Marshal(c.outcome()); err == nil {
		_, _ = streams[remotecommand.StreamErr].Write(text)
	}
}

// maxSizeBytes is as long as a size of a terminal in JSON may be.
const maxSizeBytes = 4 << 10

// decodeSizes reads sizes of a terminal until ctx ends. What comes after
// something that is no size is dropped: unread, it would hold up the client's
// other streams.
func decodeSizes(ctx context.Context, from io.Reader) <-chan remotecommand.TerminalSize {
	to := make(chan remotecommand.TerminalSize)
	go func() {
		defer close(to)
		some := &io.LimitedReader{R: from}
		for d := json.NewDecoder(some); ; {
			some.N = maxSizeBytes
			var size remotecommand.TerminalSize
			if d.Decode(&size) != nil {
				_, _ = io.Copy(io.Discard, from)
				return
			}
			select {
			case to <- size:
			case <-ctx.Done():
				return
			}
		}
	}()
	return to
}

// An outcome is how a session ended, as far as clients read the type Status.
// Kubernetes: k8s.io/apimachinery/pkg/apis/meta/v1, Status.
type outcome struct {
	Status  string          `json:"status"`
	Message string          `json:"message,omitempty"`
	Reason  string          `json:"reason,omitempty"`
	Details *outcomeDetails `json:"details,omitempty"`
	Code    int             `json:"code,omitempty"`
}

type outcomeDetails struct {
	Causes []outcomeCause `json:"causes"`
}

type outcomeCause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func (c *command) outcome() outcome {
	switch {
	case c.err != nil:
		return outcome{Status: "Failure", Reason: "InternalError", Code: http.StatusInternalServerError, Message: "Internal error occurred: " + c.err.Error()}
	case c.name == "exec" && c.code != 0:
		return outcome{
			Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason,
			Message: "command terminated with non-zero exit code: " + exitError(c.code).Error(),
			Details: &outcomeDetails{[]outcomeCause{{Reason: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(c.code)}}},
		}
	}
	return outcome{Status: "Success"}
}
