package criclient_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/criclient"
)

// matches reports whether err's text has what pattern describes.
func matches(pattern string, err error) bool {
	return err != nil && regexp.MustCompile(pattern).MatchString(err.Error())
}

// socketFor returns a path that is short enough for a socket.
func socketFor(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cri")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "cri.sock")
}

func TestEndpoints(t *testing.T) {
	long := "/" + strings.Repeat("d", 106)
	for _, c := range []struct{ endpoint, says, is string }{
		{endpoint: "/run/a.sock", is: "unix:///run/a.sock"},
		{endpoint: "unix:///run/a.sock", is: "unix:///run/a.sock"},
		{endpoint: "unix:/run/a.sock", is: "unix:///run/a.sock"}, // kubelets take it
		{endpoint: "unix:///run//x/../a.sock", is: "unix:///run/a.sock"},
		{endpoint: "unix:///run/my%20dir/a.sock", is: "unix:///run/my dir/a.sock"}, // kubelets decode
		{endpoint: "/run/50%.sock", is: "unix:///run/50%.sock"},
		{endpoint: long, is: "unix://" + long},
		{endpoint: "", says: `^endpoint "": it is empty; want unix:///absolute/path.sock$`},
		{endpoint: "run/a.sock", says: `^endpoint run/a.sock: the path is relative; want unix:///absolute/path.sock$`},
		{endpoint: "./a.sock", says: "relative"},
		{endpoint: "unix://run/a.sock", says: "the path is relative; .*three slashes"},
		{endpoint: "unix://", says: "relative"},
		{endpoint: "unix:///", says: "names no file"},
		{endpoint: "/", says: "names no file"},
		{endpoint: "unix:run/a.sock", says: "relative"},
		{endpoint: "unix://@abstract", says: "abstract sockets.* not supported"},
		{endpoint: "unix:@abstract", says: "abstract sockets.* not supported"},
		{endpoint: "unix-abstract:name", says: "abstract sockets.* not supported"},
		{endpoint: "@abstract", says: "abstract sockets.* not supported"},
		{endpoint: "tcp://127.0.0.1:1", says: `^endpoint tcp://127.0.0.1:1: tcp:// is not supported; want unix:///absolute/path.sock$`},
		{endpoint: "npipe:////./pipe/containerd", says: "npipe:// is not supported"},
		{endpoint: "unix:///run/%zz", says: "no URL: invalid URL escape"},
		{endpoint: "unix:///run/a.sock?x=1", says: "no query"},
		{endpoint: "unix:///run/a.sock#x", says: "no fragment"},
		{endpoint: "/run/a\x00b", says: "zero byte"},
		{endpoint: long + "d", says: "the path has 108 bytes; a socket's has 107 at most"},
		{endpoint: "unix://" + long + "d", says: "108 bytes"},
	} {
		client, err := criclient.New(criclient.Options{Runtime: c.endpoint})
		var at *criclient.EndpointError
		switch {
		case c.says != "" && (!matches(c.says, err) || !errors.As(err, &at)):
			t.Errorf("%q: %v", c.endpoint, err)
		case c.says == "" && err != nil:
			t.Errorf("%q: %v", c.endpoint, err)
		case c.says == "" && client.Endpoint() != c.is:
			t.Errorf("%q is %q, want %q", c.endpoint, client.Endpoint(), c.is)
		}
		parsed, err := criclient.ParseEndpoint(c.endpoint)
		again, _ := criclient.ParseEndpoint(parsed)
		if (err == nil) != (c.says == "") || err == nil && (again != parsed || strings.ReplaceAll(parsed, "%20", " ") != strings.ReplaceAll(c.is, "%", "%25")) {
			t.Errorf("%q is parsed to %q, then %q: %v", c.endpoint, parsed, again, err)
		}
		if client != nil {
			client.Close()
		}
		if c.says != "" {
			if _, err := criclient.New(criclient.Options{Runtime: "/run/a.sock", Image: c.endpoint}); c.endpoint != "" && !matches(c.says, err) {
				t.Errorf("image endpoint %q: %v", c.endpoint, err)
			}
		}
	}
}

// TestUnreachable names what is wrong with what is there.
func TestUnreachable(t *testing.T) {
	path := socketFor(t)
	dir := filepath.Dir(path)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/gone/cri.sock", link); err != nil {
		t.Fatal(err)
	}
	crashed := listen(t, isCrashed)
	datagrams := filepath.Join(dir, "datagrams")
	l, err := net.ListenPacket("unixgram", datagrams)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, c := range []struct {
		endpoint, says string
		is             error
	}{
		{path, `there is no such file; start the runtime, or name its socket`, fs.ErrNotExist},
		{link, `it is a link to /gone/cri.sock, where there is nothing; start the runtime`, fs.ErrNotExist},
		{filepath.Join(dir, "none", "cri.sock"), `there is no directory ` + filepath.Join(dir, "none"), fs.ErrNotExist},
		{filepath.Join(file, "cri.sock"), `there is no such file`, syscall.ENOTDIR},
		{file, `it is a file, not a socket; name the runtime's socket`, syscall.ECONNREFUSED},
		{dir, `it is a directory; name the socket`, syscall.ECONNREFUSED},
		{crashed.socket.Path(), `nobody listens on the socket; start the runtime`, syscall.ECONNREFUSED},
		{datagrams, `the socket is not of type stream`, syscall.EPROTOTYPE},
	} {
		client, err := criclient.New(criclient.Options{Runtime: c.endpoint})
		if err != nil {
			t.Fatal(err)
		}
		_, callErr := client.Version(t.Context(), &runtimeapi.VersionRequest{})
		_, probeErr := criclient.Probe(t.Context(), c.endpoint)
		for _, err := range []error{callErr, probeErr} {
			var at *criclient.EndpointError
			if !errors.As(err, &at) || !matches(c.says, at) || !errors.Is(err, c.is) || at.Endpoint != "unix://"+c.endpoint {
				t.Errorf("%s: %v (%v)", c.endpoint, err, at)
			}
		}
		if !errors.Is(callErr, criclient.ErrUnavailable) {
			t.Errorf("%s: %v is not ErrUnavailable", c.endpoint, callErr)
		}
		client.Close()
	}
}

// TestLinkedSocket: a link is followed anew at each dial, so that it may change
// from one runtime to another. The version that was settled stays.
func TestLinkedSocket(t *testing.T) {
	one, other := listen(t, isV1alpha2), listen(t, isBoth)
	link := filepath.Join(filepath.Dir(socketFor(t)), "link")
	point := func(to *server) {
		t.Helper()
		if err := os.Symlink(to.socket.Path(), link+"~"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link+"~", link); err != nil {
			t.Fatal(err)
		}
	}
	point(one)
	c, err := criclient.Dial(t.Context(), criclient.Options{Runtime: link})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	point(other)
	one.socket.Crash()
	criclient.AwaitLoss(t, c, criclient.RuntimeService)
	if got := words(t, c, criclient.RuntimeService, other, "ListPodSandbox", func(ctx context.Context) error {
		_, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		return err
	}); got != useV1alpha2 {
		t.Error(got)
	}
}

// TestForbidden runs this test's program as a user who may not connect.
func TestForbidden(t *testing.T) {
	if endpoint := os.Getenv("CRICLIENT_TEST_ENDPOINT"); endpoint != "" {
		_, err := criclient.Probe(t.Context(), endpoint)
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%v is not fs.ErrPermission", err)
		}
		t.Log(err)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	s := listen(t, isV1)
	dir := filepath.Dir(s.socket.Path())
	for _, c := range []struct {
		dir, socket os.FileMode
		says        string
	}{
		{0o755, 0o600, "permission denied; run as root, or as a user who may write to the socket"},
		{0o700, 0o666, "permission denied in a directory above it; run as root"},
	} {
		if err := errors.Join(os.Chmod(dir, c.dir), os.Chmod(s.socket.Path(), c.socket)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe", "-test.run", "^TestForbidden$", "-test.v")
		cmd.Env = append(os.Environ(), "CRICLIENT_TEST_ENDPOINT="+s.socket.Endpoint())
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), c.says) {
			t.Errorf("%v:\n%s\nwant %q", err, out, c.says)
		}
	}
}

func FuzzEndpoint(f *testing.F) {
	for _, s := range []string{"", "/", "/%", "unix:///a", "unix://a", "tcp://x", "unix:///%41", "unix:///a?b", "//x", "unix:////a/../..", "\x00", "unix://[::1]/x", "unix:///" + strings.Repeat("a", 200)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, endpoint string) {
		c, err := criclient.New(criclient.Options{Runtime: endpoint})
		var at *criclient.EndpointError
		if err != nil {
			if !errors.As(err, &at) || at.Endpoint != endpoint || at.Problem == "" {
				t.Errorf("%q: %v", endpoint, err)
			}
			return
		}
		defer c.Close()
		path, ok := strings.CutPrefix(c.Endpoint(), "unix://")
		if !ok || !filepath.IsAbs(path) || len(path) > 107 || filepath.Clean(path) != path {
			t.Errorf("%q became %q", endpoint, c.Endpoint())
		}
		// What it was made into means the same, unless it has to be escaped.
		if strings.ContainsAny(path, "%?# \"<>^`{|}\\") {
			return
		}
		again, err := criclient.New(criclient.Options{Runtime: path})
		if err != nil || again.Endpoint() != c.Endpoint() {
			t.Errorf("%q became %q, and that %v", endpoint, c.Endpoint(), err)
		}
		if again != nil {
			again.Close()
		}
	})
}
