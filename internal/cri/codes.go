package cri

import (
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/span"
)

// codeOf is the only place where an error becomes a gRPC code.
var codeOf = map[fault.Kind]codes.Code{
	fault.Internal:      codes.Internal,
	fault.Invalid:       codes.InvalidArgument,
	fault.NotFound:      codes.NotFound,
	fault.Exists:        codes.AlreadyExists,
	fault.Precondition:  codes.FailedPrecondition,
	fault.Unavailable:   codes.Unavailable,
	fault.Unimplemented: codes.Unimplemented,
	fault.Exhausted:     codes.ResourceExhausted,
	fault.Deadline:      codes.DeadlineExceeded,
	fault.Canceled:      codes.Canceled,
	fault.Denied:        codes.PermissionDenied,
	fault.Unknown:       codes.Unknown,
}

// contracts are texts that the kubelet looks for at the very start of a
// message. Kubernetes: pkg/kubelet/images, pkg/kubelet/kuberuntime.
var contracts = []string{
	"RegistryUnavailable", "SignatureValidationFailed", "ImageVolumeMountFailed", "RROUnsupported",
}

// grpcError turns an error into a status. A call cut short says in which step
// of t it was.
func grpcError(err error, t *span.Trace) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err // an embedded Unimplemented server's, or gRPC's own
	}
	kind := fault.KindOf(err)
	code, ok := codeOf[kind]
	if !ok {
		code = codes.Internal
	}
	text := err.Error()
	for _, c := range contracts {
		if i := strings.Index(text, c+":"); i > 0 {
			text = text[i:]
			break
		}
	}
	if kind == fault.Deadline || kind == fault.Canceled {
		if step, age := t.Running(); step != "" {
			text += " (in " + step + " for " + age.Round(time.Millisecond).String() + ")"
		}
	}
	// A status is a protobuf string: invalid UTF-8 would hide the message.
	return status.Error(code, strings.ToValidUTF8(text, "\uFFFD"))
}
