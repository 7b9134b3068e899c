package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/davit-runtime/davit/criclient"
	"github.com/davit-runtime/davit/internal/play"
)

// rpcPrefix is what gRPC puts before the runtime's own words.
var rpcPrefix = regexp.MustCompile(`rpc error: code = \w+ desc = `)

// interrupted tells that the user gave up.
func interrupted(err error) bool {
	return errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled
}

// apart returns what was joined by errors.Join, to have a line each.
func apart(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || errors.Join(joined.Unwrap()...).Error() != err.Error() {
		return []error{err} // one with words of its own
	}
	return joined.Unwrap()
}

// explain says in one line what went wrong, why and what to do. A manifest's
// problems have a line each.
func (a *app) explain(err error) string {
	var bad *play.ManifestError
	if errors.As(err, &bad) {
		return bad.Error()
	}
	if interrupted(err) {
		return "davit: interrupted"
	}
	var at *criclient.EndpointError
	if errors.As(err, &at) {
		return fmt.Sprintf("davit: %v; --endpoint or %s names another", at, endpointEnv)
	}
	return "davit: " + oneLine(rpcPrefix.ReplaceAllString(err.Error(), "")) + a.advice(err)
}

// oneLine joins what has several lines, as joined errors do.
func oneLine(text string) string {
	var parts []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, "; ")
}

// advice is what to do about err, beginning with "; ", or nothing.
func (a *app) advice(err error) string {
	var none *criclient.NegotiationError
	if errors.As(err, &none) || errors.Is(err, criclient.ErrVersionLost) {
		return "" // these give advice themselves
	}
	if errors.Is(err, fs.ErrPermission) {
		return "; run it as root"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return a.timeoutAdvice()
	}
	s, ok := status.FromError(err)
	if !ok {
		return ""
	}
	switch s.Code() {
	case codes.Unavailable:
		if strings.Contains(s.Message(), "error reading from server") {
			return fmt.Sprintf("; the runtime at %s ended before it answered: look at its log", a.endpoint)
		}
	case codes.DeadlineExceeded:
		return a.timeoutAdvice()
	case codes.PermissionDenied:
		if !a.credsGiven {
			return "; give credentials by davit pull --creds"
		}
	case codes.Unimplemented:
		return fmt.Sprintf("; the runtime at %s cannot do this", a.endpoint)
	}
	return ""
}

func (a *app) timeoutAdvice() string {
	return fmt.Sprintf("; the runtime did not answer within %v: look at its log, or allow more by --timeout", a.timeout)
}
