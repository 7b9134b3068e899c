package endpoint_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/criclient/crifake"
	"github.com/davit-runtime/davit/internal/endpoint"
)

// What lies at a socket's path.
const (
	v1       = "\x00v1"
	v1alpha2 = "\x00v1alpha2"
	noCRI    = "\x00nothing of the CRI"
	mute     = "\x00accepts and is silent"
	stale    = "\x00stale"
)

// A node is files below a root, by path, and what the user says.
type node struct {
	files map[string]string // "->target" is a symbolic link
	env   map[string]string
	flag  string
	image string
}

// lay writes the node's files, and serves its sockets.
func (n node) lay(t *testing.T) (root string) {
	t.Helper()
	root, err := os.MkdirTemp("", "ep") // short: socket paths have 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	for name, text := range n.files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := put(t, root, path, text); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func put(t *testing.T, root, path, text string) error {
	if target, link := strings.CutPrefix(text, "->"); link {
		return os.Symlink(filepath.Join(root, target), path)
	}
	serves := map[string]crifake.Serves{v1: crifake.V1(), v1alpha2: crifake.V1alpha2(), noCRI: {}}
	switch text {
	case v1, v1alpha2, noCRI:
		s, err := crifake.New().Listen(path, serves[text])
		t.Cleanup(s.Close)
		return err
	case mute:
		l, err := net.Listen("unix", path)
		t.Cleanup(func() { l.Close() })
		return err
	case stale:
		return unix.Mknod(path, unix.S_IFSOCK|0o600, 0)
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

func (n node) find(t *testing.T, root string) (endpoint.Found, error) {
	s := endpoint.Search{Root: root, Named: n.flag, ImageName: n.image, Env: func(name string) string { return n.env[name] }}
	return s.Find(t.Context())
}

// kubelet is the process of one, with these flags.
func kubelet(args string) string {
	return strings.ReplaceAll("/usr/bin/kubelet "+args, " ", "\x00") + "\x00"
}

const (
	davit      = "/run/davit/davit.sock"
	containerd = "/run/containerd/containerd.sock"
	crio       = "/run/crio/crio.sock"
	crictl     = "/etc/crictl.yaml"
	process    = "/proc/77/cmdline"
	config     = "/var/lib/kubelet/config.yaml"
	kind       = "kind: KubeletConfiguration\n"
)

func TestFind(t *testing.T) {
	// Each place names a socket of its own, so that it is seen which one counts.
	all := map[string]string{
		crictl: "runtime-endpoint: unix:///crictl.sock\n", davit: v1, process: kubelet("--container-runtime-endpoint=unix:///kubelet.sock"),
	}
	without := func(names ...string) map[string]string {
		left := map[string]string{}
		for name, text := range all {
			left[name] = text
		}
		for _, name := range names {
			delete(left, name)
		}
		return left
	}
	with := func(files map[string]string, more ...string) map[string]string {
		for i := 0; i < len(more); i += 2 {
			files[more[i]] = more[i+1]
		}
		return files
	}
	env := func(pairs ...string) map[string]string { return with(map[string]string{}, pairs...) }
	for _, c := range []struct {
		name   string
		node   node
		want   string // "runtime (from)", or a regular expression of the error
		images string // where they are elsewhere
		wait   time.Duration
	}{
		// The order.
		{name: "flag", node: node{files: all, flag: "/flag.sock", env: env(endpoint.Env, "/env.sock")}, want: "unix:///flag.sock (--endpoint)"},
		{name: "variable", node: node{files: all, env: env(endpoint.Env, "unix:///env.sock")}, want: "unix:///env.sock (CONTAINER_RUNTIME_ENDPOINT)"},
		{name: "an empty variable", node: node{files: all, env: env(endpoint.Env, "")}, want: "unix:///crictl.sock (/etc/crictl.yaml:1)"},
		{name: "crictl", node: node{files: all}, want: "unix:///crictl.sock (/etc/crictl.yaml:1)"},
		{name: "kubelet", node: node{files: without(crictl)}, want: "unix:///kubelet.sock (the running kubelet's flag --container-runtime-endpoint)"},
		{name: "a kubelet's file", node: node{files: with(without(crictl, process), config, kind+"containerRuntimeEndpoint: unix:///file.sock\n")}, want: "unix:///file.sock (" + config + ")"},
		{name: "a usual socket", node: node{files: without(crictl, process)}, want: "unix://" + davit + " (davit's usual socket)"},
		{name: "another's", node: node{files: map[string]string{crio: v1alpha2}}, want: "unix://" + crio + " (CRI-O's usual socket)"},

		// Places that name none are passed over; what is named counts even if nobody answers.
		{name: "crictl without an endpoint", node: node{files: with(without(process), crictl, "debug: true\nnewer-than-davit: [1]\n")}, want: "unix://" + davit + " (davit's usual socket)"},
		{name: "an empty crictl", node: node{files: with(without(process), crictl, "# nothing\n")}, want: "unix://" + davit + " (davit's usual socket)"},
		{name: "an empty endpoint", node: node{files: with(without(process), crictl, "runtime-endpoint: \"\"\ntimeout:\n")}, want: "unix://" + davit + " (davit's usual socket)"},
		{name: "a kubelet without an endpoint", node: node{files: with(without(crictl), process, kubelet("--v=2"))}, want: "unix://" + davit + " (davit's usual socket)"},
		{name: "a kubelet whose file is broken", node: node{files: with(without(crictl), process, kubelet("--config=/k.yaml"), "/k.yaml", "\t")}, want: "unix://" + davit + " (davit's usual socket)"},
		{name: "a kubelet with mounts of its own", node: node{files: with(without(crictl), "/proc/self/ns/mnt", "->mnt:[1]", "/proc/77/ns/mnt", "->mnt:[2]")}, want: "unix://" + davit + " (davit's usual socket)"},
		{name: "a stale socket", node: node{files: map[string]string{davit: stale, containerd: v1}}, want: "unix://" + containerd + " (containerd's usual socket)"},
		{name: "a file", node: node{files: map[string]string{davit: "no socket", containerd: v1}}, want: "unix://" + containerd + " (containerd's usual socket)"},

		// Images.
		{name: "images by flag", node: node{files: all, image: "/i.sock", env: env(endpoint.ImageEnv, "/e.sock")}, want: "unix:///crictl.sock (/etc/crictl.yaml:1)", images: "unix:///i.sock (--image-endpoint)"},
		{name: "images by variable", node: node{files: all, flag: "/flag.sock", env: env(endpoint.ImageEnv, "/e.sock")}, want: "unix:///flag.sock (--endpoint)", images: "unix:///e.sock (IMAGE_SERVICE_ENDPOINT)"},
		{name: "crictl's images", node: node{files: with(without(), crictl, "timeout: 7\nimage-endpoint: unix:///i.sock\nruntime-endpoint: /c.sock\n")}, want: "unix:///c.sock (/etc/crictl.yaml:3)", images: "unix:///i.sock (/etc/crictl.yaml:2)", wait: 7 * time.Second},
		{name: "crictl's images, another's runtime", node: node{files: with(without(), crictl, "image-endpoint: /i.sock\nruntime-endpoint: /c.sock\n"), flag: "/flag.sock"}, want: "unix:///flag.sock (--endpoint)"},
		{name: "crictl's images only", node: node{files: with(without(), crictl, "image-endpoint: /i.sock\n")}, want: "unix:///kubelet.sock (the running kubelet's flag --container-runtime-endpoint)", images: "unix:///i.sock (/etc/crictl.yaml:1)"},
		{name: "the kubelet's images", node: node{files: with(without(crictl), process, kubelet("--container-runtime-endpoint /k.sock --image-service-endpoint /i.sock"))}, want: "unix:///k.sock (the running kubelet's flag --container-runtime-endpoint)", images: "unix:///i.sock (the running kubelet's flag --image-service-endpoint)"},

		// Several.
		{name: "two", node: node{files: map[string]string{containerd: v1, crio: v1}}, want: `^several container runtimes answer: containerd at unix://` + containerd + `, CRI-O at unix://` + crio +
			`; choose one by --endpoint or CONTAINER_RUNTIME_ENDPOINT, or for good by a line in /etc/crictl.yaml: runtime-endpoint: unix://` + containerd + `$`},
		{name: "Docker's containerd", node: node{files: map[string]string{davit: v1, containerd: noCRI}}, want: "unix://" + davit + " (davit's usual socket)"},
		{name: "nobody has the CRI", node: node{files: map[string]string{davit: noCRI, containerd: noCRI}}, want: `(?s)no container runtime was found.*` + containerd + ` +the program there serves no CRI\n`},
		{name: "one by two names", node: node{files: map[string]string{containerd: "->" + davit, davit: v1}}, want: "unix://" + davit + " (davit's usual socket)"},
		{name: "two, and a choice", node: node{files: map[string]string{containerd: v1, crio: v1}, env: env(endpoint.Env, "unix://"+crio)}, want: "unix://" + crio + " (CONTAINER_RUNTIME_ENDPOINT)"},

		// What is wrong.
		{name: "a relative path", node: node{files: all, flag: "run/a.sock"}, want: `^--endpoint: endpoint run/a.sock: the path is relative; want unix:///absolute/path.sock$`},
		{name: "TCP", node: node{files: all, env: env(endpoint.Env, "tcp://1.2.3.4:5")}, want: `^CONTAINER_RUNTIME_ENDPOINT: endpoint tcp://1.2.3.4:5: tcp:// is not supported`},
		{name: "a relative path of images", node: node{files: all, image: "a.sock"}, want: `^--image-endpoint: endpoint a.sock: the path is relative`},
		{name: "a relative path in crictl's", node: node{files: with(without(), crictl, "debug: false\nruntime-endpoint: unix://run/a.sock\n")}, want: `^/etc/crictl.yaml:2: endpoint unix://run/a.sock: the path is relative`},
		{name: "no YAML", node: node{files: with(without(), crictl, "runtime-endpoint: unix:///a\n\ttimeout: 2\n")}, want: `^/etc/crictl.yaml:2: not YAML: `},
		{name: "no YAML, as the library counts", node: node{files: with(without(), crictl, "debug: false\nruntime-endpoint: [a\n")}, want: `^/etc/crictl.yaml:2: not YAML: did not find expected ',' or ']'$`},
		{name: "a text", node: node{files: with(without(), crictl, "unix:///run/a.sock\n")}, want: `^/etc/crictl.yaml:1: not a list of settings such as runtime-endpoint: `},
		{name: "a list", node: node{files: with(without(), crictl, "runtime-endpoint:\n- unix:///a\n")}, want: `^/etc/crictl.yaml:1: runtime-endpoint is not one text`},
		{name: "a timeout with a unit", node: node{files: with(without(), crictl, "runtime-endpoint: /a\ntimeout: 2s\n")}, want: `^/etc/crictl.yaml:2: timeout is "2s"; it is a number of seconds$`},
		{name: "a broken file that does not count", node: node{files: with(without(), crictl, "\t"), flag: "/flag.sock"}, want: "unix:///flag.sock (--endpoint)"},
		{name: "another crictl.yaml", node: node{files: with(without(), "/k3s/crictl.yaml", "runtime-endpoint: /k.sock"), env: env("CRI_CONFIG_FILE", "/k3s/crictl.yaml")}, want: "unix:///k.sock (/k3s/crictl.yaml:1)"},
		{name: "another that is not there", node: node{files: all, env: env("CRI_CONFIG_FILE", "/none.yaml")}, want: `^/none.yaml, which CRI_CONFIG_FILE names: no such file or directory$`},
	} {
		t.Run(c.name, func(t *testing.T) {
			found, err := c.node.find(t, c.node.lay(t))
			if err != nil {
				if !regexp.MustCompile(c.want).MatchString(err.Error()) {
					t.Errorf("error %q, want %q", err, c.want)
				}
				return
			}
			if got := told(found.Runtime); got != c.want {
				t.Errorf("runtime %q, want %q", got, c.want)
			}
			if c.images == "" {
				c.images = c.want
			}
			if got := told(found.Image); got != c.images {
				t.Errorf("images %q, want %q", got, c.images)
			}
			if found.Timeout != c.wait {
				t.Errorf("timeout %v, want %v", found.Timeout, c.wait)
			}
		})
	}
}

func told(s endpoint.Setting) string { return fmt.Sprintf("%s (%s)", s.Address, s.From) }

// A program that accepts and says nothing may be a runtime, so two answer.
func TestSilentSocket(t *testing.T) {
	n := node{files: map[string]string{davit: v1, containerd: mute}}
	var several *endpoint.AmbiguousError
	if _, err := n.find(t, n.lay(t)); !errors.As(err, &several) || len(several.Sockets) != 2 {
		t.Errorf("found %v", err)
	}
}

// Where there is none, each place that was looked at is told, with what is there.
func TestFindNothing(t *testing.T) {
	n := node{files: map[string]string{crictl: "timeout: 2\n", davit: stale, crio: "a file", process: kubelet("--config=/k.yaml")}}
	root := n.lay(t)
	_, err := n.find(t, root)
	var none *endpoint.NotFoundError
	if !errors.As(err, &none) || none.Denied {
		t.Fatalf("found %v", err)
	}
	want := `no container runtime was found; looked at
  --endpoint                           not given
  CONTAINER_RUNTIME_ENDPOINT           not set
  /etc/crictl.yaml                     has no runtime-endpoint
  the kubelet                          /k.yaml: no such file or directory
  /run/davit/davit.sock                nobody listens on the socket
  /run/containerd/containerd.sock      there is no directory ROOT/run/containerd
  /run/crio/crio.sock                  it is a file, not a socket
  /run/cri-dockerd.sock                there is no such file
  /run/k3s/containerd/containerd.sock  there is no directory ROOT/run/k3s/containerd
start one, or name its socket by --endpoint`
	if got := strings.ReplaceAll(err.Error(), root, "ROOT"); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	for name, text := range map[string]string{crictl: "", process: kubelet("--v=2")} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.find(t, root); err == nil || !strings.Contains(err.Error(), "is set to no endpoint: flags only") {
		t.Errorf("found %v", err)
	}
}

// What this user may not see is told as such, and is not passed over where it
// may say which runtime is meant.
func TestForbidden(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	n := node{files: map[string]string{crictl: "timeout: 2\n", davit: v1, process: kubelet("--config=/k.yaml"), "/k.yaml": kind}}
	root := n.lay(t)
	for name, mode := range map[string]os.FileMode{"": 0o755, crictl: 0o600, "/k.yaml": 0o600, davit: 0o600} {
		if err := os.Chmod(filepath.Join(root, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	asNobody := func() (err error) {
		done := make(chan bool)
		go func() {
			defer close(done)
			runtime.LockOSThread() // and never unlocked: the thread ends with its user
			if err = unix.Setfsuid(65534); err == nil {
				_, err = n.find(t, root)
			}
		}()
		<-done
		return err
	}
	if err := asNobody(); !errors.Is(err, fs.ErrPermission) || err.Error() != "/etc/crictl.yaml: permission denied" {
		t.Errorf("found %v", err)
	}
	if err := os.Remove(filepath.Join(root, crictl)); err != nil {
		t.Fatal(err)
	}
	err := asNobody()
	for _, says := range []string{`the kubelet +/k.yaml: permission denied\n`, davit + ` +permission denied\n`, `by --endpoint; as root more can be seen$`} {
		if err == nil || !regexp.MustCompile(says).MatchString(err.Error()) {
			t.Errorf("found %v, want %q", err, says)
		}
	}
}
