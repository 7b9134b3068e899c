package criclient

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kubelet's own. Source: k8s.io/cri-client, remote_runtime.go and utils.go.
const (
	maxReceiveBytes   = 16 << 20
	backoffBase       = 100 * time.Millisecond
	backoffMax        = 3 * time.Second
	minConnectTimeout = 5 * time.Second
	defaultTimeout    = 2 * time.Minute // runtimeRequestTimeout
)

// kubeRuntimeVersion is the only value that a kubelet accepts in Version.
// Source: kubelet, kuberuntime_manager.go, kubeRuntimeAPIVersion.
const kubeRuntimeVersion = "0.1.0"

// Options say what a Client talks to, and how.
type Options struct {
	// Runtime is the endpoint of the runtime service: unix:///path/to.sock or
	// an absolute path.
	Runtime string
	// Image is the endpoint of the image service. Empty means Runtime.
	Image string

	// Renegotiate settles the version anew after each redial. Off, as in the
	// kubelet, the version first settled is kept for the Client's life.
	Renegotiate bool
	// Timeout bounds one negotiation of one service; 0 means 2 minutes. It
	// does not bound other calls.
	Timeout time.Duration
	// Settled, if set, is told of each version settled, also of one settled
	// anew, one after the other. The call that led to it waits meanwhile.
	Settled func(Choice)

	// GRPC is added to the dial options, for interceptors or statistics.
	GRPC []grpc.DialOption
}

// A Client is a connection to one runtime. All its methods may be called at
// once from several goroutines.
//
// The embedded clients are those of CRI v1, whichever version is spoken. A
// call that the version spoken does not have, or that the runtime answered by
// Unimplemented since it was last connected, fails with ErrUnimplemented
// without being sent.
type Client struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient

	runtime, image *link
}

// New checks the options and prepares a Client. It neither blocks nor
// connects: each service settles its version at its first call, or in
// Connect; until it has, calls of that service fail with a *NegotiationError.
//
// New returns an *EndpointError for a name that cannot be a socket's. The
// caller closes the Client.
func New(o Options) (*Client, error) {
	if o.Image == "" {
		o.Image = o.Runtime
	}
	if told := o.Settled; told != nil { // the services are settled at once
		var one sync.Mutex
		o.Settled = func(c Choice) {
			one.Lock()
			defer one.Unlock()
			told(c)
		}
	}
	runtime, err := newLink(RuntimeService, o.Runtime, o)
	if err != nil {
		return nil, err
	}
	image, err := newLink(ImageService, o.Image, o)
	if err != nil {
		return nil, errors.Join(err, runtime.conn.Close())
	}
	return &Client{
		RuntimeServiceClient: runtimeapi.NewRuntimeServiceClient(runtime),
		ImageServiceClient:   runtimeapi.NewImageServiceClient(image),
		runtime:              runtime, image: image,
	}, nil
}

// Dial returns a Client whose versions are settled, as a kubelet starts: both
// services have answered, or there is no Client, and the error says why.
func Dial(ctx context.Context, o Options) (*Client, error) {
	c, err := New(o)
	if err != nil {
		return nil, err
	}
	if err := c.Connect(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Connect settles the versions of both services at once, unless they are. It
// returns what went wrong with each, a *NegotiationError or two, and may be
// repeated. It blocks as long as the slower of the two.
func (c *Client) Connect(ctx context.Context) error {
	var images error
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		_, images = c.image.settled(ctx)
	}()
	_, err := c.runtime.settled(ctx)
	<-asked
	return errors.Join(err, images)
}

// Close ends the connections; calls under way fail with ErrCanceled.
func (c *Client) Close() error {
	return errors.Join(c.runtime.conn.Close(), c.image.conn.Close())
}

// Endpoint returns the runtime service's address, unix:///path.
func (c *Client) Endpoint() string { return c.runtime.endpoint }

// ImageEndpoint returns the image service's address, unix:///path.
func (c *Client) ImageEndpoint() string { return c.image.endpoint }

// Choice returns what is settled for s, or nil if nothing is yet. It does not
// block.
func (c *Client) Choice(s Service) *Choice {
	if s == ImageService {
		return c.image.choice.Load()
	}
	return c.runtime.choice.Load()
}

// CheckVersion asks the runtime for its version and refuses, as the kubelet
// does, one that is not of this interface or has a field missing.
//
// CRI: api.proto, Version. Source: k8s.io/cri-client, versionV1; kubelet,
// kuberuntime_manager.go, ErrVersionNotSupported.
func (c *Client) CheckVersion(ctx context.Context) (*runtimeapi.VersionResponse, error) {
	v, err := c.Version(ctx, &runtimeapi.VersionRequest{Version: kubeRuntimeVersion})
	if err != nil {
		return nil, err
	}
	if missing := missingIn(v); missing != "" {
		return nil, fmt.Errorf("runtime at %s: its answer to Version lacks %s, which a kubelet refuses", c.Endpoint(), missing)
	}
	if v.Version != kubeRuntimeVersion {
		return nil, fmt.Errorf("runtime %s at %s: it answers Version with %q; a kubelet takes %q only",
			v.RuntimeName, c.Endpoint(), v.Version, kubeRuntimeVersion)
	}
	return v, nil
}

func missingIn(v *runtimeapi.VersionResponse) string {
	var missing []string
	for _, f := range []struct{ name, value string }{
		{"version", v.Version}, {"runtime_name", v.RuntimeName}, {"runtime_version", v.RuntimeVersion}, {"runtime_api_version", v.RuntimeApiVersion},
	} {
		if f.value == "" {
			missing = append(missing, f.name)
		}
	}
	return strings.Join(missing, ", ")
}

// connect prepares a connection to d's socket as the kubelet does.
func connect(d *dialer, more []grpc.DialOption) (*grpc.ClientConn, error) {
	reconnect := backoff.DefaultConfig
	reconnect.BaseDelay, reconnect.MaxDelay = backoffBase, backoffMax
	// The target is for show: gRPC would parse a path, and d knows it.
	return grpc.NewClient("passthrough:///localhost", append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(d.dial),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReceiveBytes)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: minConnectTimeout}),
	}, more...)...)
}
