package criclient

import (
	"context"
	"testing"

	"google.golang.org/grpc/connectivity"
)

// AwaitLoss waits until c has noticed that the connection of s has ended.
func AwaitLoss(t *testing.T, c *Client, s Service) {
	t.Helper()
	l := c.runtime
	if s == ImageService {
		l = c.image
	}
	for l.conn.GetState() == connectivity.Ready {
		if !l.conn.WaitForStateChange(context.WithoutCancel(t.Context()), connectivity.Ready) {
			t.Fatal("the connection did not end")
		}
	}
}
