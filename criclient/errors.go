package criclient

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// What a runtime's answer can be, for errors.Is. An error may be several.
var (
	// ErrRegistryUnavailable: the registry could not be reached (PullImage).
	ErrRegistryUnavailable = crierrors.ErrRegistryUnavailable
	// ErrSignatureValidationFailed: the image's signature is not good (PullImage).
	ErrSignatureValidationFailed = crierrors.ErrSignatureValidationFailed
	// ErrImageVolumeMountFailed: an image could not be mounted as a volume (CreateContainer).
	ErrImageVolumeMountFailed = crierrors.ErrImageVolumeMountFailed
	// ErrRROUnsupported: recursive read-only mounts are not possible (CreateContainer).
	ErrRROUnsupported = crierrors.ErrRROUnsupported

	// ErrVersionLost: see VersionLostError.
	ErrVersionLost = errors.New("version lost")
	// ErrCommandTimedOut: the runtime ended a command whose time was over
	// (ExecSync). The caller's own deadline is not this.
	ErrCommandTimedOut = errors.New("command timed out")
	// ErrMessageTooLarge: an answer exceeds 16 MiB; of lists, see Client.Pods.
	ErrMessageTooLarge = errors.New("message too large")

	ErrCanceled           = errors.New("canceled")
	ErrInvalid            = errors.New("invalid request")
	ErrTimeout            = errors.New("timeout")
	ErrNotFound           = errors.New("not found")
	ErrAlreadyExists      = errors.New("already exists")
	ErrDenied             = errors.New("permission denied") // PermissionDenied or Unauthenticated
	ErrExhausted          = errors.New("resource exhausted")
	ErrFailedPrecondition = errors.New("failed precondition") // the state is not right for this
	ErrUnimplemented      = errors.New("unimplemented")
	ErrUnavailable        = errors.New("unavailable") // the runtime is down, or not ready yet
)

var ofCode = map[codes.Code][]error{
	codes.Canceled:           {ErrCanceled, context.Canceled},
	codes.InvalidArgument:    {ErrInvalid},
	codes.OutOfRange:         {ErrInvalid},
	codes.DeadlineExceeded:   {ErrTimeout, context.DeadlineExceeded},
	codes.NotFound:           {ErrNotFound},
	codes.AlreadyExists:      {ErrAlreadyExists},
	codes.PermissionDenied:   {ErrDenied},
	codes.Unauthenticated:    {ErrDenied},
	codes.ResourceExhausted:  {ErrExhausted},
	codes.FailedPrecondition: {ErrFailedPrecondition},
	codes.Unimplemented:      {ErrUnimplemented},
	codes.Unavailable:        {ErrUnavailable},
}

// Words that an answer begins with, whatever its code; kubelets look for them.
// Source: kubelet, evalCRIPullErr, and getFailedCreateContainerReason's kin.
var ofPrefix = []error{ErrRegistryUnavailable, ErrSignatureValidationFailed, ErrImageVolumeMountFailed, ErrRROUnsupported}

// An Error is a runtime's answer to a call, or gRPC's where none came. It is
// its sentinels for errors.Is, and status.FromError gives the status as it
// was sent: code, message, details.
type Error struct {
	Service Service
	Method  string // "RunPodSandbox"

	status *status.Status
	kinds  []error
	cause  error // an *EndpointError if the runtime was not reached
}

// Error is gRPC's text: "rpc error: code = NotFound desc = ...".
func (e *Error) Error() string { return e.status.Err().Error() }

// Code is the answer's.
func (e *Error) Code() codes.Code { return e.status.Code() }

// Message is the runtime's own words.
func (e *Error) Message() string { return e.status.Message() }

// GRPCStatus serves package status.
func (e *Error) GRPCStatus() *status.Status { return e.status }

// Is serves package errors.
func (e *Error) Is(target error) bool { return slices.Contains(e.kinds, target) }

// Unwrap returns an *EndpointError, or nil.
func (e *Error) Unwrap() error { return e.cause }

// endpointError is what err says is wrong with its endpoint, or nil.
func endpointError(err error) *EndpointError {
	var e *EndpointError
	errors.As(err, &e)
	return e
}

// newError types what gRPC returned for a call made with ctx. Errors that are
// no statuses, io.EOF of streams above all, stay as they are.
func newError(ctx context.Context, s Service, method string, err error, cause *EndpointError) error {
	st, ok := status.FromError(err)
	if !ok || st.Code() == codes.OK {
		return err
	}
	e := &Error{Service: s, Method: method, status: st, kinds: slices.Clone(ofCode[st.Code()])}
	for _, kind := range ofPrefix {
		if strings.HasPrefix(st.Message(), kind.Error()) {
			e.kinds = append(e.kinds, kind)
		}
	}
	switch {
	case method == "ExecSync" && st.Code() == codes.DeadlineExceeded && !over(ctx):
		e.kinds = append(e.kinds, ErrCommandTimedOut)
	case st.Code() == codes.ResourceExhausted && strings.Contains(st.Message(), "message larger than max"):
		e.kinds = append(e.kinds, ErrMessageTooLarge) // source: gRPC, both ends use these words
	case method == "UpdatePodSandboxResources" && st.Code() == codes.Unknown && strings.Contains(st.Message(), "not implemented"):
		e.kinds = append(e.kinds, ErrUnimplemented) // containerd 2.2; source: kubelet, updatePodSandboxResources
	}
	if st.Code() == codes.Unavailable && cause != nil {
		e.cause = cause
	}
	return e
}

// over reports whether the caller has given up, or its time is over: a runtime
// is told of the deadline, and may notice before ctx does.
func over(ctx context.Context) bool {
	deadline, limited := ctx.Deadline()
	return ctx.Err() != nil || limited && !time.Now().Before(deadline)
}
