// Package criclient talks to a container runtime over the Container Runtime
// Interface, as the kubelet does: a gRPC connection to a Unix socket, runtime
// and image service of CRI v1.
//
// It needs nothing of davit's daemon and works with any runtime. Calls fail
// fast with codes.Unavailable while the runtime is down; the connection heals
// by itself. The package starts nothing and retries nothing.
//
// The version is settled in Version; older versions of the interface will be
// negotiated there.
package criclient

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kubelet's own limits. Source: k8s.io/cri-client, remote_runtime.go.
const (
	maxReceiveBytes   = 16 << 20
	backoffBase       = 100 * time.Millisecond
	backoffMax        = 3 * time.Second
	minConnectTimeout = 5 * time.Second
)

// kubeRuntimeVersion is the only value that a kubelet accepts in Version.
const kubeRuntimeVersion = "0.1.0"

// A Client is a connection to one runtime. It is safe for concurrent use.
type Client struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient

	endpoint string
	conn     *grpc.ClientConn
}

// Dial prepares a connection to the runtime at endpoint: unix:///path/to.sock
// or an absolute path. It does not block and succeeds when nobody listens:
// the first call connects. The caller closes the Client.
func Dial(endpoint string) (*Client, error) {
	path, err := socketPath(endpoint)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(dialUnix),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReceiveBytes)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect(), MinConnectTimeout: minConnectTimeout}),
	)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", endpoint, err)
	}
	return &Client{
		RuntimeServiceClient: runtimeapi.NewRuntimeServiceClient(conn),
		ImageServiceClient:   runtimeapi.NewImageServiceClient(conn),
		endpoint:             "unix://" + path,
		conn:                 conn,
	}, nil
}

// Endpoint returns the address in the form unix:///path.
func (c *Client) Endpoint() string { return c.endpoint }

// Close ends the connection; calls under way fail with codes.Canceled.
func (c *Client) Close() error { return c.conn.Close() }

// CheckVersion asks the runtime for its version and refuses, as the kubelet
// does, one that is not of CRI v1.
//
// CRI: api.proto, Version.
func (c *Client) CheckVersion(ctx context.Context) (*runtimeapi.VersionResponse, error) {
	v, err := c.Version(ctx, &runtimeapi.VersionRequest{Version: kubeRuntimeVersion})
	if err != nil {
		return nil, err
	}
	if v.Version != kubeRuntimeVersion || v.RuntimeApiVersion != "v1" {
		return nil, fmt.Errorf("runtime %s at %s speaks version %q, API %q; needed are %q and \"v1\"",
			v.RuntimeName, c.endpoint, v.Version, v.RuntimeApiVersion, kubeRuntimeVersion)
	}
	return v, nil
}

func socketPath(endpoint string) (string, error) {
	path, hasScheme := strings.CutPrefix(endpoint, "unix://")
	if !hasScheme && strings.Contains(endpoint, "://") {
		return "", fmt.Errorf("endpoint %q: only unix:// is supported", endpoint)
	}
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("endpoint %q: want unix:///absolute/path.sock", endpoint)
	}
	return path, nil
}

func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}

func reconnect() backoff.Config {
	c := backoff.DefaultConfig
	c.BaseDelay, c.MaxDelay = backoffBase, backoffMax
	return c
}
