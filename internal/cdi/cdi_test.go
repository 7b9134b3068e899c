package cdi

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

func asking(names ...string) *runtimeapi.ContainerConfig {
	c := &runtimeapi.ContainerConfig{}
	for _, name := range names {
		c.CDIDevices = append(c.CDIDevices, &runtimeapi.CDIDevice{Name: name})
	}
	return c
}

func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func spec() *specs.Spec {
	return &specs.Spec{
		Version: "1.0.0", Process: &specs.Process{Env: []string{"PATH=/bin", "MODE=none"}},
		Linux: &specs.Linux{Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}},
	}
}

const gpus = `cdiVersion: "0.7.0"
kind: "vendor.com/gpu"
containerEdits:
  env: ["DRIVER=1"]
  mounts: [{hostPath: /lib/driver, containerPath: /usr/lib/driver, options: [ro, bind]}]
devices:
- name: "0"
  containerEdits:
    env: ["MODE=zero"]
    deviceNodes: [{path: /dev/gpu0, hostPath: /dev/null, permissions: rw}]
    hooks: [{hookName: createContainer, path: /bin/hook, args: [hook, zero]}]
    additionalGids: [4242]
- name: "1"
  containerEdits:
    deviceNodes: [{path: /dev/gpu1, hostPath: /dev/zero}]
`

func TestInject(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "gpus.yaml", gpus)
	d := New([]string{dir, filepath.Join(dir, "absent")}, slog.New(slog.DiscardHandler))
	c := asking("vendor.com/gpu=1", "vendor.com/gpu=0")
	c.Annotations = map[string]string{"cdi.k8s.io/b": "vendor.com/gpu=0", "cdi.k8s.io/a": "vendor.com/gpu=1,vendor.com/gpu=0", "other": "vendor.com/gpu=9"}
	s := spec()
	if err := d.InjectRequested(s, c); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.Process.Env, []string{"PATH=/bin", "MODE=zero", "DRIVER=1"}) {
		t.Errorf("environment %q", s.Process.Env)
	}
	if len(s.Mounts) != 1 || s.Mounts[0].Destination != "/usr/lib/driver" {
		t.Errorf("mounts %+v", s.Mounts)
	}
	if len(s.Hooks.CreateContainer) != 1 || !slices.Equal(s.Process.User.AdditionalGids, []uint32{4242}) || s.Version != "1.0.0" {
		t.Errorf("%+v, %+v, %s", s.Hooks, s.Process.User, s.Version)
	}
	if len(s.Linux.Devices) != 2 || s.Linux.Devices[0].Path != "/dev/gpu1" || s.Linux.Devices[0].Minor != 5 || s.Linux.Devices[1].Minor != 3 {
		t.Errorf("devices %+v", s.Linux.Devices)
	}
	rules := s.Linux.Resources.Devices
	if len(rules) != 3 || *rules[1].Minor != 5 || rules[1].Access != "rwm" || *rules[2].Minor != 3 || rules[2].Access != "rw" || !rules[2].Allow {
		t.Errorf("rules %+v", rules)
	}
	untouched := spec()
	if err := d.InjectRequested(untouched, &runtimeapi.ContainerConfig{}); err != nil || untouched.Hooks != nil || len(untouched.Process.Env) != 2 {
		t.Errorf("nothing asked for: %v, %+v", err, untouched)
	}
}

func TestRequested(t *testing.T) {
	c := asking("a.b/c=z", "a.b/c=y", "a.b/c=z")
	c.Annotations = map[string]string{"cdi.k8s.io/2": "a.b/c=x", "cdi.k8s.io/1": "a.b/c=w,a.b/c=y", "k8s.io/cdi": "a.b/c=v"}
	if got := Requested(c); !slices.Equal(got, []string{"a.b/c=z", "a.b/c=y", "a.b/c=w", "a.b/c=x"}) {
		t.Errorf("%q", got)
	}
}

// one is a spec file with one device.
func one(name, env string) string {
	return fmt.Sprintf(`{"cdiVersion":"0.3.0","kind":"vendor.com/x","devices":[{"name":%q,"containerEdits":{"env":[%q]}}]}`, name, env)
}

// A later directory hides an earlier one; within one, two that say different
// things are none.
func TestWhichFileCounts(t *testing.T) {
	early, late := t.TempDir(), t.TempDir()
	write(t, early, "a.json", one("hidden", "FROM=early"))
	write(t, late, "a.json", one("hidden", "FROM=late"))
	first, second := write(t, early, "b.json", one("twice", "FROM=b")), write(t, early, "c.json", one("twice", "FROM=c"))
	write(t, early, "d.json", one("settled", "FROM=d"))
	write(t, early, "e.json", one("settled", "FROM=e"))
	write(t, late, "d.json", one("settled", "FROM=late"))
	write(t, early, "note.txt", "{")
	d := New([]string{early, late}, slog.New(slog.DiscardHandler))
	for _, name := range []string{"hidden", "settled"} {
		s := spec()
		if err := d.InjectRequested(s, asking("vendor.com/x="+name)); err != nil || !slices.Contains(s.Process.Env, "FROM=late") {
			t.Errorf("%s: %v, %q", name, err, s.Process.Env)
		}
	}
	err := d.InjectRequested(spec(), asking("vendor.com/x=twice"))
	if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "vendor.com/x=twice") ||
		!strings.Contains(err.Error(), first) || !strings.Contains(err.Error(), second) {
		t.Error(err)
	}
}

// Whatever is dropped into the directory, it takes nothing along but itself,
// and is named where it might have been what is missing.
func TestHostileFiles(t *testing.T) {
	device := func(edits string) string {
		return `{"cdiVersion":"0.6.0","kind":"bad.com/x","devices":[{"name":"d","containerEdits":` + edits + `}]}`
	}
	for name, text := range map[string]string{
		"empty":              "",
		"null":               "null",
		"a list":             "[]",
		"a word":             "word",
		"binary":             "\x00\xff\x01",
		"cut off":            `{"cdiVersion":"0.6.0","kind":`,
		"one letter":         `{"cdiVersion":"0.6.0","kind":"v/c","devices":[{"name":"d","containerEdits":{"env":["A=B"]}}]}`, // fine today
		"no letter":          `{"cdiVersion":"0.6.0","kind":"/","devices":[{"name":"d","containerEdits":{"env":["A=B"]}}]}`,
		"only a dash":        `{"cdiVersion":"0.6.0","kind":"-/-","devices":[{"name":"-","containerEdits":{"env":["A=B"]}}]}`,
		"no version":         `{"kind":"bad.com/x"}`,
		"version of later":   `{"cdiVersion":"99.0.0","kind":"bad.com/x","devices":[{"name":"d","containerEdits":{"env":["A=B"]}}]}`,
		"version of nowhere": `{"cdiVersion":"x","kind":"bad.com/x"}`,
		"unknown field":      `{"cdiVersion":"0.6.0","kind":"bad.com/x","more":1}`,
		"null device":        `{"cdiVersion":"0.6.0","kind":"bad.com/x","devices":[null]}`,
		"null devices":       `{"cdiVersion":"0.6.0","kind":"bad.com/x","devices":null}`,
		"null node":          device(`{"deviceNodes":[null]}`),
		"null hook":          device(`{"hooks":[null]}`),
		"null mount":         device(`{"mounts":[null]}`),
		"null interface":     device(`{"netDevices":[null]}`),
		"null edits":         device(`null`),
		"bad hook":           device(`{"hooks":[{"hookName":"never","path":"/x"}]}`),
		"bad environment":    device(`{"env":["=x"]}`),
		"deep":               strings.Repeat("[", 20000),
		"aliases":            "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e]\n",
		"huge":               "# " + strings.Repeat("x", maxFile),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := write(t, dir, "a-bad.yaml", text)
			write(t, dir, "good.json", one("d", "GOOD=1"))
			var log bytes.Buffer
			d := New([]string{dir}, slog.New(slog.NewTextHandler(&log, nil)))
			for range 2 {
				s := spec()
				if err := d.InjectRequested(s, asking("vendor.com/x=d")); err != nil || !slices.Contains(s.Process.Env, "GOOD=1") {
					t.Errorf("the other device: %v", err)
				}
			}
			if name == "one letter" {
				return
			}
			err := d.InjectRequested(spec(), asking("bad.com/x=d"))
			if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "bad.com/x=d") || !strings.Contains(err.Error(), path) {
				t.Errorf("its own device: %v", err)
			}
			if n := strings.Count(log.String(), "\n"); n != 1 {
				t.Errorf("%d lines in the log: %s", n, log.String())
			}
		})
	}
}

// What is no file is not opened: reading a pipe would take forever.
func TestNoFiles(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "pipe.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{"pipe.json", "/dev/zero", "nowhere", "."} {
		if err := os.Symlink(link, filepath.Join(dir, "to-"+filepath.Base(link)+".yaml")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "dir.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "good.json", one("d", "GOOD=1"))
	none := write(t, t.TempDir(), "none", "")
	d := New([]string{none, dir}, slog.New(slog.DiscardHandler))
	if err := d.InjectRequested(spec(), asking("vendor.com/x=d")); err != nil {
		t.Error(err)
	}
	err := d.InjectRequested(spec(), asking("vendor.com/x=e"))
	for _, part := range []string{"pipe.json", "to-zero.yaml", "to-nowhere.yaml", none} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s is not named: %v", part, err)
		}
	}
}

func TestFilesAreReadAnew(t *testing.T) {
	dir := t.TempDir()
	d := New([]string{dir}, slog.New(slog.DiscardHandler))
	if err := d.InjectRequested(spec(), asking("vendor.com/x=d")); !fault.Is(err, fault.Precondition) {
		t.Error(err)
	}
	for _, env := range []string{"GOOD=1", "GOOD=2"} {
		path := write(t, dir, "a.json", one("d", env))
		s := spec()
		if err := d.InjectRequested(s, asking("vendor.com/x=d")); err != nil || !slices.Contains(s.Process.Env, env) {
			t.Errorf("%v, %q", err, s.Process.Env)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhatTheHostLacks(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.json", `{"cdiVersion":"1.1.0","kind":"vendor.com/x","devices":[
		{"name":"gone","containerEdits":{"deviceNodes":[{"path":"/dev/no-such-device"}]}},
		{"name":"file","containerEdits":{"deviceNodes":[{"path":"/etc/passwd"}]}},
		{"name":"net","containerEdits":{"netDevices":[{"hostInterfaceName":"eth9","name":"eth1"}]}}]}`)
	d := New([]string{dir}, slog.New(slog.DiscardHandler))
	for name, want := range map[string]struct {
		kind fault.Kind
		text string
	}{
		"gone": {fault.Precondition, "/dev/no-such-device"},
		"file": {fault.Precondition, "/etc/passwd"},
		"net":  {fault.Unimplemented, "network interfaces"},
	} {
		err := d.InjectRequested(spec(), asking("vendor.com/x="+name))
		if !fault.Is(err, want.kind) || !strings.Contains(err.Error(), want.text) || !strings.Contains(err.Error(), "vendor.com/x="+name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Many containers that ask at once share nothing.
func TestInjectAtOnce(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "gpus.yaml", gpus)
	d := New([]string{dir}, slog.New(slog.DiscardHandler))
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			s := spec()
			if err := d.InjectRequested(s, asking("vendor.com/gpu=0", "vendor.com/gpu=1")); err != nil || len(s.Linux.Devices) != 2 {
				t.Errorf("%v, %+v", err, s.Linux.Devices)
			}
		})
	}
	all.Wait()
}
