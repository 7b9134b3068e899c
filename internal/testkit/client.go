package testkit

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A Client speaks the CRI to any runtime.
type Client struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient
	conn *grpc.ClientConn
}

var versionRequest runtimeapi.VersionRequest

// maxMessage is the kubelet's limit for one message.
const maxMessage = 16 << 20

// reconnect is impatient: tests kill servers all the time.
var reconnect = backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.5, MaxDelay: 50 * time.Millisecond}

// Dial returns a client of "unix:///path". It does not wait for the server.
func Dial(endpoint string) (*Client, error) {
	conn, err := grpc.NewClient(endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 5 * time.Second}))
	if err != nil {
		return nil, err
	}
	return &Client{runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn), conn}, nil
}

// Close ends the connection.
func (c *Client) Close() { _ = c.conn.Close() }

// Call invokes any RPC by its full name, "/runtime.v1.RuntimeService/Version".
// Of a server stream it returns the first message, or io.EOF.
func (c *Client) Call(ctx context.Context, method string, request, response proto.Message, stream bool) error {
	if !stream {
		return c.conn.Invoke(ctx, method, request, response)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return err
	}
	// io.EOF: the server has answered already; RecvMsg has its words.
	if err := s.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	return s.RecvMsg(response)
}

// Client returns a client of the daemon until the test's end.
func (d *Daemon) Client(t testing.TB) *Client {
	t.Helper()
	c, err := Dial("unix://" + d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// PodConfig returns the least that a pod needs: a name, a UID of its own, and
// a directory for its logs below logs.
func PodConfig(name, logs string) *runtimeapi.PodSandboxConfig {
	uid := make([]byte, 16)
	_, _ = rand.Read(uid)
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: hex.EncodeToString(uid)},
		Hostname: name,
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: namespaces(),
		}},
	}
	if logs != "" {
		config.LogDirectory = filepath.Join(logs, "default_"+name+"_"+config.Metadata.Uid)
	}
	return config
}

// ContainerConfig returns the least that a container needs.
func ContainerConfig(name, image string, command ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: image},
		Command:  command,
		LogPath:  name + "/0.log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: namespaces(),
		}},
	}
}

// namespaces is what a kubelet asks for unless a manifest says otherwise.
func namespaces() *runtimeapi.NamespaceOption {
	return &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
}

// Pull pulls an image and returns its reference.
func (c *Client) Pull(ctx context.Context, ref string) (string, error) {
	r, err := c.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return r.GetImageRef(), err
}

// RunPod runs a pod and returns its ID.
func (c *Client) RunPod(ctx context.Context, config *runtimeapi.PodSandboxConfig) (string, error) {
	r, err := c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	return r.GetPodSandboxId(), err
}

// RunContainer creates and starts a container. It returns the ID of one that
// was created but does not start, too.
func (c *Client) RunContainer(ctx context.Context, podID string, pod *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) (string, error) {
	r, err := c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: config, SandboxConfig: pod})
	if err != nil {
		return "", err
	}
	_, err = c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: r.ContainerId})
	return r.ContainerId, err
}

// RemovePod stops and removes a pod.
func (c *Client) RemovePod(ctx context.Context, id string) error {
	if _, err := c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return err
	}
	_, err := c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

// RemoveAll stops and removes every pod.
func (c *Client) RemoveAll(ctx context.Context) error {
	list, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range list.Items {
		if err := c.RemovePod(ctx, p.Id); err != nil {
			errs = append(errs, fmt.Errorf("remove pod %s: %w", p.Metadata.GetName(), err))
		}
	}
	return errors.Join(errs...)
}

// AwaitExit waits until a container has exited and returns its status.
func (c *Client) AwaitExit(ctx context.Context, id string) (*runtimeapi.ContainerStatus, error) {
	for {
		r, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			return nil, err
		}
		if r.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			return r.Status, nil
		}
		select {
		case <-ctx.Done():
			return r.Status, fmt.Errorf("container %s is %s: %w", id, r.Status.State, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
