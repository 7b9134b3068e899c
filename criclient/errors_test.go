package criclient_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/davit-runtime/davit/criclient"
)

// sentinels are all that errors can be.
var sentinels = map[string]error{
	"RegistryUnavailable": criclient.ErrRegistryUnavailable, "SignatureValidationFailed": criclient.ErrSignatureValidationFailed,
	"ImageVolumeMountFailed": criclient.ErrImageVolumeMountFailed, "RROUnsupported": criclient.ErrRROUnsupported,
	"VersionLost": criclient.ErrVersionLost, "CommandTimedOut": criclient.ErrCommandTimedOut, "MessageTooLarge": criclient.ErrMessageTooLarge,
	"Canceled": criclient.ErrCanceled, "Invalid": criclient.ErrInvalid, "Timeout": criclient.ErrTimeout, "NotFound": criclient.ErrNotFound,
	"AlreadyExists": criclient.ErrAlreadyExists, "Denied": criclient.ErrDenied, "Exhausted": criclient.ErrExhausted,
	"FailedPrecondition": criclient.ErrFailedPrecondition, "Unimplemented": criclient.ErrUnimplemented, "Unavailable": criclient.ErrUnavailable,
}

func TestErrorsOfRuntimes(t *testing.T) {
	s := listen(t, isV1)
	c := dial(t, s)
	call := map[string]func() error{
		"PullImage": func() error {
			_, err := c.PullImage(t.Context(), &runtimeapi.PullImageRequest{})
			return err
		},
		"CreateContainer": func() error {
			_, err := c.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{})
			return err
		},
		"ExecSync": func() error {
			_, err := c.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{})
			return err
		},
		"ContainerStatus": func() error {
			_, err := c.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{})
			return err
		},
		"UpdatePodSandboxResources": func() error {
			_, err := c.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{})
			return err
		},
		"StreamImages": func() error {
			_, err := c.Images(t.Context(), nil)
			return err
		},
	}
	for _, row := range []struct {
		method  string
		code    codes.Code
		message string
		is      []string
	}{
		// The words that kubelets look for.
		{"PullImage", codes.Unknown, "RegistryUnavailable: no route to host", []string{"RegistryUnavailable"}},
		{"PullImage", codes.Unavailable, "RegistryUnavailable: no route to host", []string{"RegistryUnavailable", "Unavailable"}},
		{"PullImage", codes.Unknown, "SignatureValidationFailed: no signature", []string{"SignatureValidationFailed"}},
		{"PullImage", codes.Unknown, "the registry said RegistryUnavailable", nil}, // not at the beginning
		{"PullImage", codes.Unauthenticated, "no", []string{"Denied"}},
		{"PullImage", codes.PermissionDenied, "no", []string{"Denied"}},
		{"PullImage", codes.ResourceExhausted, "disk full", []string{"Exhausted"}},
		{"CreateContainer", codes.Internal, "ImageVolumeMountFailed: no such image", []string{"ImageVolumeMountFailed"}},
		{"CreateContainer", codes.NotFound, "ImageVolumeMountFailed: no such image", []string{"ImageVolumeMountFailed", "NotFound"}},
		{"CreateContainer", codes.Unknown, "RROUnsupported", []string{"RROUnsupported"}},
		{"CreateContainer", codes.AlreadyExists, "name is taken", []string{"AlreadyExists"}},
		{"CreateContainer", codes.InvalidArgument, "config: is required", []string{"Invalid"}},
		{"CreateContainer", codes.OutOfRange, "too much", []string{"Invalid"}},
		{"CreateContainer", codes.FailedPrecondition, "pod is not ready", []string{"FailedPrecondition"}},
		{"ExecSync", codes.DeadlineExceeded, "over", []string{"CommandTimedOut", "Timeout"}},
		{"ContainerStatus", codes.DeadlineExceeded, "over", []string{"Timeout"}},
		{"ContainerStatus", codes.NotFound, "no such container", []string{"NotFound"}},
		{"ContainerStatus", codes.Unavailable, "server is not initialized yet", []string{"Unavailable"}},
		{"ContainerStatus", codes.Canceled, "stopping", []string{"Canceled"}},
		{"ContainerStatus", codes.Internal, "oh", nil},
		{"ContainerStatus", codes.Unknown, "not implemented", nil},
		{"StreamImages", codes.NotFound, "no", []string{"NotFound"}},
		{"UpdatePodSandboxResources", codes.Unknown, "not implemented yet", []string{"Unimplemented"}}, // containerd 2.2
		{"UpdatePodSandboxResources", codes.Unimplemented, "no", []string{"Unimplemented"}},
	} {
		sent, err := status.New(row.code, row.message).WithDetails(&runtimeapi.ImageSpec{Image: "a detail"})
		if err != nil {
			t.Fatal(err)
		}
		s.Fail(row.method, sent.Err())
		err = fmt.Errorf("what was tried: %w", call[row.method]())
		for name, sentinel := range sentinels {
			want := false
			for _, is := range row.is {
				want = want || is == name
			}
			if errors.Is(err, sentinel) != want {
				t.Errorf("%s, %s %q: Is %s = %t", row.method, row.code, row.message, name, !want)
			}
		}
		// Nothing that was sent is lost.
		var e *criclient.Error
		if !errors.As(err, &e) || e.Method != row.method || e.Code() != row.code || e.Message() != row.message {
			t.Errorf("%s, %s %q: %v", row.method, row.code, row.message, err)
			continue
		}
		got, ok := status.FromError(e)
		if !ok || got.Code() != row.code || got.Message() != row.message || len(got.Details()) != 1 {
			t.Errorf("status %v", got)
		}
		if e.Error() != sent.Err().Error() {
			t.Errorf("text %q, want %q", e.Error(), sent.Err().Error())
		}
	}
	if !errors.Is(criclient.ErrRegistryUnavailable, crierrors.ErrRegistryUnavailable) {
		t.Error("cri-api's own errors are others")
	}
}

// TestCallersDeadline is not the command's.
func TestCallersDeadline(t *testing.T) {
	s := listen(t, isV1)
	c := dial(t, s)
	s.Hold("ExecSync")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{})
	if errors.Is(err, criclient.ErrCommandTimedOut) || !errors.Is(err, criclient.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ExecSync = %v", err)
	}
	// The runtime may be the first to notice.
	_, err = c.ExecSync(late{t.Context()}, &runtimeapi.ExecSyncRequest{})
	if errors.Is(err, criclient.ErrCommandTimedOut) || !errors.Is(err, criclient.ErrTimeout) {
		t.Errorf("ExecSync = %v", err)
	}
}

// late is a context that has not noticed that its deadline is over.
type late struct{ context.Context }

func (late) Deadline() (time.Time, bool) { return time.Now().Add(-time.Second), true }
