package criclient

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
)

// maxSocketPath is the longest path of a Unix socket, in bytes.
// Source: unix(7), sun_path has 108 bytes with the final zero.
const maxSocketPath = 107

// An EndpointError says what is wrong with an endpoint: with its name, or
// with what is there. It wraps the system's error where there is one:
// fs.ErrNotExist, fs.ErrPermission, syscall.ECONNREFUSED.
type EndpointError struct {
	Endpoint string
	Problem  string // "there is no such file", "want unix:///absolute/path.sock"
	Advice   string // what to do; may be empty
	Err      error  // may be nil
}

func (e *EndpointError) Error() string {
	text := fmt.Sprintf("endpoint %s: %s", shown(e.Endpoint), e.Problem)
	if e.Advice != "" {
		text += "; " + e.Advice
	}
	return text
}

func (e *EndpointError) Unwrap() error { return e.Err }

// shown quotes what would be hard to see.
func shown(endpoint string) string {
	if endpoint == "" || strings.ContainsAny(endpoint, " \t\n\"") {
		return fmt.Sprintf("%q", endpoint)
	}
	return endpoint
}

// ParseEndpoint returns what endpoint means as a URL, unix:///path, which means
// the same again. It returns an *EndpointError for what cannot be a socket's
// name. It does not look there.
func ParseEndpoint(endpoint string) (string, error) {
	path, err := socketPath(endpoint)
	if err != nil {
		return "", err
	}
	return (&url.URL{Scheme: "unix", Path: path}).String(), nil
}

// Reach connects to the socket at endpoint and hangs up at once. It returns an
// *EndpointError that says what is wrong there, or ctx's error, and nil if
// somebody accepts. It blocks until then.
func Reach(ctx context.Context, endpoint string) error {
	path, err := socketPath(endpoint)
	if err != nil {
		return err
	}
	var plain net.Dialer
	conn, err := plain.DialContext(ctx, "unix", path)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return explainDial(path, err)
	}
	return conn.Close()
}

// socketPath returns the path that endpoint names: unix:///path, or as kubelets
// and crictl take as well, unix:/path and an absolute path.
//
// Source: k8s.io/cri-client, util_unix.go, parseEndpointWithFallbackProtocol.
func socketPath(endpoint string) (string, error) {
	bad := func(problem, advice string) error {
		return &EndpointError{Endpoint: endpoint, Problem: problem, Advice: advice}
	}
	const want = "want unix:///absolute/path.sock"
	path := endpoint
	scheme, rest, hasScheme := strings.Cut(endpoint, "://")
	if after, ok := strings.CutPrefix(endpoint, "unix:/"); ok && !hasScheme {
		scheme, rest, hasScheme = "unix", "/"+after, true
	}
	switch {
	case endpoint == "":
		return "", bad("it is empty", want)
	case strings.HasPrefix(strings.TrimPrefix(strings.TrimPrefix(endpoint, "unix:"), "//"), "@") || strings.HasPrefix(endpoint, "unix-abstract:"):
		return "", bad("abstract sockets, which anybody may connect to, are not supported", want)
	case hasScheme && scheme != "unix":
		return "", bad(scheme+":// is not supported", want)
	case hasScheme:
		u, err := url.Parse(endpoint)
		switch {
		case err != nil:
			return "", bad("it is no URL: "+reason(err), want)
		case u.Host != "" || !strings.HasPrefix(rest, "/"):
			return "", bad("the path is relative", want+", with three slashes")
		case u.RawQuery != "" || u.Fragment != "":
			return "", bad("a socket has no query and no fragment", want)
		}
		path = u.Path
	case !filepath.IsAbs(endpoint):
		return "", bad("the path is relative", want)
	}
	path = filepath.Clean(path)
	switch {
	case path == "/":
		return "", bad("it names no file", want)
	case strings.ContainsRune(path, 0):
		return "", bad("there is a zero byte in the path", "")
	case len(path) > maxSocketPath:
		return "", bad(fmt.Sprintf("the path has %d bytes; a socket's has %d at most", len(path), maxSocketPath), "use a shorter directory")
	}
	return path, nil
}

// reason is err without the URL, which url.Parse repeats.
func reason(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err.Error()
	}
	return err.Error()
}

// explainDial says why path cannot be connected to, from the system's error
// and from what lies there.
func explainDial(path string, err error) *EndpointError {
	e := &EndpointError{Endpoint: "unix://" + path, Problem: err.Error(), Err: err}
	info, statErr := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrPermission) || errors.Is(statErr, fs.ErrPermission):
		e.Problem, e.Advice = "permission denied", "run as root, or as a user who may write to the socket"
		if statErr != nil {
			e.Problem = "permission denied in a directory above it"
		}
	case errors.Is(statErr, fs.ErrNotExist) || errors.Is(statErr, syscall.ENOTDIR):
		e.Problem, e.Advice = "there is no such file", "start the runtime, or name its socket"
		if target, err := os.Readlink(path); err == nil {
			e.Problem = "it is a link to " + target + ", where there is nothing"
		} else if dir := filepath.Dir(path); missing(dir) {
			e.Problem = "there is no directory " + dir
		}
	case statErr == nil && info.IsDir():
		e.Problem, e.Advice = "it is a directory", "name the socket"
	case statErr == nil && info.Mode().Type() != fs.ModeSocket:
		e.Problem, e.Advice = "it is a file, not a socket", "name the runtime's socket"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Problem, e.Advice = "nobody listens on the socket", "start the runtime"
	case errors.Is(err, syscall.EPROTOTYPE):
		e.Problem, e.Advice = "the socket is not of type stream", "name the runtime's socket"
	}
	return e
}

func missing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// A dialer connects to one socket and numbers the connections, so that an
// answer tells which of them it came by.
type dialer struct {
	path   string
	dialed atomic.Uint64                 // connections so far; the newest has this number
	failed atomic.Pointer[EndpointError] // why the last attempt did not work; nil if it did
}

func (d *dialer) dial(ctx context.Context, _ string) (net.Conn, error) {
	var plain net.Dialer
	conn, err := plain.DialContext(ctx, "unix", d.path)
	if err != nil {
		why := explainDial(d.path, err)
		d.failed.Store(why)
		return nil, err
	}
	d.failed.Store(nil)
	return numbered{conn, address{conn.RemoteAddr(), d.dialed.Add(1)}}, nil
}

// A numbered connection gives its number away by its address.
type numbered struct {
	net.Conn
	remote address
}

func (n numbered) RemoteAddr() net.Addr { return n.remote }

type address struct {
	net.Addr
	number uint64
}
