package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/davit-runtime/davit/cmd/davit/console"
	"github.com/davit-runtime/davit/criclient"
	"github.com/davit-runtime/davit/criclient/crifake"
)

// at runs a command on a node whose files are below s.dir, without --endpoint.
func (s *shell) at(wantCode int, env map[string]string, args ...string) {
	s.Helper()
	var out, errOut bytes.Buffer
	a := app{&console.Console{In: strings.NewReader(""), Out: &out, Err: &errOut, Node: s.dir, Env: func(name string) string { return env[name] }}}
	code := a.run(args)
	s.out, s.errOut = out.String(), errOut.String()
	if code != wantCode {
		s.Fatalf("davit %q: exit code %d, want %d\n%s%s", args, code, wantCode, s.out, s.errOut)
	}
}

func (s *shell) write(path, text string) {
	s.Helper()
	path = filepath.Join(s.dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		s.Fatal(err)
	}
}

// Without a flag the runtime is found, and every error says who named it.
func TestDiscovery(t *testing.T) {
	s := newShell(t)
	s.at(1, nil, "pods")
	s.has(s.errOut, `(?s)^davit: no container runtime was found; looked at\n  --endpoint +not given\n.*/etc/crictl.yaml +there is no such file\n.*or name its socket by --endpoint\n$`)
	for _, nothing := range [][]string{{"pods", "--help"}, {"help"}, {"help", "pods"}, {"completion", "bash"}, {"__complete", "po"}} {
		s.at(0, nil, nothing...) // without a runtime, too
	}

	s.write("proc/77/cmdline", "kubelet\x00--container-runtime-endpoint="+s.socket.Path()+"\x00")
	s.at(0, nil, "pods")
	s.at(0, nil, "version")
	s.has(s.out, `(?m)^endpoint  unix://\S+cri.sock \(the running kubelet's flag --container-runtime-endpoint\)$`)

	s.write("etc/crictl.yaml", "runtime-endpoint: unix:///gone/c.sock\n")
	s.at(1, nil, "pods")
	s.has(s.errOut, `^davit: endpoint unix:///gone/c.sock: there is no directory /gone; start the runtime, or name its socket; this endpoint is from /etc/crictl.yaml:1; --endpoint names another\n$`)
	s.at(0, map[string]string{"CONTAINER_RUNTIME_ENDPOINT": s.socket.Endpoint()}, "pods")
	s.write("etc/crictl.yaml", "runtime-endpoint: gone/c.sock\n")
	s.at(1, nil, "pods")
	s.has(s.errOut, `^davit: /etc/crictl.yaml:1: endpoint gone/c.sock: the path is relative; want unix:///absolute/path.sock\n$`)
	s.write("etc/crictl.yaml", "runtime-endpoint: "+s.socket.Path()+"\nimage-endpoint: /gone/i.sock\n")
	s.at(0, nil, "pods")
	s.at(1, nil, "images")
	s.has(s.errOut, `^davit: endpoint unix:///gone/i.sock: .*; this endpoint is from /etc/crictl.yaml:2; --image-endpoint names another\n$`)
	s.at(0, nil, "images", "--image-endpoint", s.socket.Path())
}

// crictl.yaml's timeout is for connecting, so that of davit's calls stays.
func TestDiscoveredTimeout(t *testing.T) {
	s := newShell(t)
	s.write("etc/crictl.yaml", "runtime-endpoint: "+s.socket.Path()+"\ntimeout: 1\n")
	defer s.cri.Hold("Version")()
	s.at(1, nil, "pods")
	s.has(s.errOut, `v1 (got no answer|answered DeadlineExceeded) \(.*\).*the runtime hangs: look at its log, and restart it; this endpoint is from /etc/crictl.yaml:1`)
}

func TestVersion(t *testing.T) {
	s := newShell(t)
	s.davit(0, "", "version")
	s.has(s.out, `^davit     \S+\nruntime   fake 1.2.3\nendpoint  unix://\S+cri.sock \(--endpoint\)\n  CRI     v1: it is preferred, and v1 answered Version\n`+
		`images    unix://\S+cri.sock \(--endpoint\)\n  CRI     v1: it is preferred, and v1 answered ImageFsInfo\n$`)

	images, err := s.cri.Listen(s.socket.Path()+"i", crifake.Serves{Image: []criclient.Version{criclient.V1alpha2}})
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	s.davit(0, "", "version", "--image-endpoint", images.Path())
	s.has(s.out, `images    unix://\S+cri.socki \(--image-endpoint\)\n  CRI     v1alpha2: v1 answered Unimplemented \(.*\); v1alpha2 answered ImageFsInfo\n$`)

	s.davit(0, "", "version", "-o", "json")
	var seen versions
	if err := json.Unmarshal([]byte(s.out), &seen); err != nil || seen.RuntimeName != "fake" || seen.Runtime.CRI != "v1" || seen.Images.CRI != "v1" || len(seen.Problems) > 0 {
		t.Errorf("%v:\n%s", err, s.out)
	}
}

// Whatever the runtime does, davit's own version is told, and what is wrong.
func TestVersionOfNone(t *testing.T) {
	s := newShell(t)
	s.at(1, nil, "version")
	s.has(s.out, `^davit     \S+\n$`)
	s.has(s.errOut, `^davit: no container runtime was found; looked at\n`)

	s.cri.Fail("Version", status.Error(codes.Internal, "not yet"))
	s.davit(1, "", "version")
	s.has(s.out, `\n  CRI     none can be used: v1 answered Internal \(not yet\)\nimages .*\n  CRI     v1: `)
	s.has(s.errOut, `^davit: runtime service at .*; v1alpha2 was not tried, since only Unimplemented leads to it; look at the runtime's log; .*; this endpoint is given by --endpoint\n$`)

	s.socket.Vanish()
	s.davit(1, "", "version", "-o", "json")
	var seen versions
	if err := json.Unmarshal([]byte(s.out), &seen); err != nil || seen.Davit == "" || seen.Runtime.CRI != "" || seen.Runtime.Why != "v1 got no answer (there is no such file)" || len(seen.Problems) != 1 {
		t.Errorf("%v:\n%s", err, s.out)
	}
	s.has(s.errOut, `^davit: endpoint unix://\S+: there is no such file; start the runtime, or name its socket; this endpoint is given by --endpoint\n$`)
}
