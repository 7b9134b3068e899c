package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/davit-runtime/davit/criclient"
	"github.com/davit-runtime/davit/internal/endpoint"
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
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, apart(e)...)
	}
	return all
}

// explained has what explain says of each part of err, once.
func (a *app) explained(err error) []string {
	var lines []string
	for _, e := range apart(err) {
		if line := a.explain(e); !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return lines
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
	var none *endpoint.NotFoundError
	if errors.As(err, &none) {
		return "davit: " + none.Error() // a line for each place
	}
	var at *criclient.EndpointError
	if errors.As(err, &at) && a.client != nil {
		return fmt.Sprintf("davit: %v; %s", at, a.another(at.Endpoint))
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
	if errors.As(err, &none) {
		return "; " + a.another(none.Endpoint) // the rest it says itself
	}
	if errors.Is(err, criclient.ErrVersionLost) {
		return ""
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
			return fmt.Sprintf("; the runtime at %s ended before it answered: look at its log", a.found.Runtime.Address)
		}
	case codes.DeadlineExceeded:
		return a.timeoutAdvice()
	case codes.PermissionDenied:
		if !a.credsGiven {
			return "; give credentials by davit pull --creds"
		}
	case codes.Unimplemented:
		return fmt.Sprintf("; the runtime at %s cannot do this", a.found.Runtime.Address)
	}
	return ""
}

// another says who named the endpoint at address, and how to name another.
func (a *app) another(address string) string {
	at, flag := a.found.Runtime, endpoint.Flag
	if at.Address != address && a.found.Image.Address == address {
		at, flag = a.found.Image, endpoint.ImageFlag
	}
	if at.From == flag {
		return "this endpoint is given by " + flag
	}
	return fmt.Sprintf("this endpoint is from %s; %s names another", at.From, flag)
}

func (a *app) timeoutAdvice() string {
	return fmt.Sprintf("; the runtime did not answer within %v: look at its log, or allow more by --timeout", a.timeout)
}
