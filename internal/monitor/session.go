package monitor

import (
	"context"

	"github.com/davit-runtime/davit/internal/fault"
)

// ExecStream runs a command in a container, connected to s, and returns its
// exit code once all that it wrote has been written to s.
func (c *Client) ExecStream(_ context.Context, _ Exec, _ Stream) (code int, err error) {
	return 0, fault.New(fault.Unimplemented, "monitor.ExecStream", "not there yet")
}

// Attach connects s to a running container until that has ended or ctx ends.
func (c *Client) Attach(_ context.Context, _ string, _ Stream) error {
	return fault.New(fault.Unimplemented, "monitor.Attach", "not there yet")
}
