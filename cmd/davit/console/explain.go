package console

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

// Interrupted tells that the user gave up.
func Interrupted(err error) bool {
	return errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled
}

// Apart returns what was joined by errors.Join, to have a line each.
func Apart(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || errors.Join(joined.Unwrap()...).Error() != err.Error() {
		return []error{err} // one with words of its own
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, Apart(e)...)
	}
	return all
}

// explained has what explain says of each part of err, once.
func (c *Console) Explained(err error) []string {
	var lines []string
	for _, e := range Apart(err) {
		if line := c.Explain(e); !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return lines
}

// explain says in one line what went wrong, why and what to do. A manifest's
// problems have a line each.
func (c *Console) Explain(err error) string {
	var bad *play.ManifestError
	if errors.As(err, &bad) {
		return bad.Error()
	}
	if Interrupted(err) {
		return "davit: interrupted"
	}
	var none *endpoint.NotFoundError
	if errors.As(err, &none) {
		return "davit: " + none.Error() // a line for each place
	}
	var at *criclient.EndpointError
	if errors.As(err, &at) && c.Client != nil {
		return fmt.Sprintf("davit: %v; %s", at, c.another(at.Endpoint))
	}
	return "davit: " + OneLine(rpcPrefix.ReplaceAllString(err.Error(), "")) + c.advice(err)
}

// OneLine joins what has several lines, as joined errors do.
func OneLine(text string) string {
	var parts []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, "; ")
}

// advice is what to do about err, beginning with "; ", or nothing.
func (c *Console) advice(err error) string {
	var none *criclient.NegotiationError
	if errors.As(err, &none) {
		return "; " + c.another(none.Endpoint) // the rest it says itself
	}
	if errors.Is(err, criclient.ErrVersionLost) {
		return ""
	}
	if errors.Is(err, fs.ErrPermission) {
		return "; run it as root"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return c.timeoutAdvice()
	}
	s, ok := status.FromError(err)
	if !ok {
		return ""
	}
	switch s.Code() {
	case codes.Unavailable:
		if strings.Contains(s.Message(), "error reading from server") {
			return fmt.Sprintf("; the runtime at %s ended before it answered: look at its log", c.Found.Runtime.Address)
		}
	case codes.DeadlineExceeded:
		return c.timeoutAdvice()
	case codes.PermissionDenied:
		if !c.CredsGiven {
			return "; give credentials by davit pull --creds"
		}
	case codes.Unimplemented:
		return fmt.Sprintf("; the runtime at %s cannot do this", c.Found.Runtime.Address)
	}
	return ""
}

// another says who named the endpoint at address, and how to name another.
func (c *Console) another(address string) string {
	at, flag := c.Found.Runtime, endpoint.Flag
	if at.Address != address && c.Found.Image.Address == address {
		at, flag = c.Found.Image, endpoint.ImageFlag
	}
	if at.From == flag {
		return "this endpoint is given by " + flag
	}
	return fmt.Sprintf("this endpoint is from %s; %s names another", at.From, flag)
}

func (c *Console) timeoutAdvice() string {
	return fmt.Sprintf("; the runtime did not answer within %v: look at its log, or allow more by --timeout", c.Timeout)
}
