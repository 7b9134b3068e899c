package play

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func testFiles(t *testing.T) Files {
	t.Helper()
	dir := t.TempDir()
	return Files{Dir: filepath.Join(dir, "play", "u-1"), Logs: filepath.Join(dir, "logs", "ns_a_u-1")}
}

func TestCleanRefuses(t *testing.T) {
	f := testFiles(t)
	if err := f.claim(); err != nil {
		t.Fatal(err)
	}
	if err := f.claim(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second claim = %v", err)
	}
	stranger := filepath.Join(filepath.Dir(f.Dir), "u-2")
	if err := os.MkdirAll(filepath.Join(stranger, "precious"), 0o755); err != nil {
		t.Fatal(err)
	}
	forged := filepath.Join(filepath.Dir(f.Dir), "u-3")
	if err := (Files{Dir: forged, Logs: "/etc"}).claim(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ dir, uid string }{
		{f.Dir, ""}, {f.Dir, "u-2"}, {"/", "/"}, {"u-1", "u-1"}, {stranger, "u-2"}, {forged, "u-3"},
	} {
		if err := Clean(c.dir, c.uid); err == nil {
			t.Errorf("Clean(%q, %q) succeeded", c.dir, c.uid)
		}
	}
	if _, err := os.Stat(filepath.Join(stranger, "precious")); err != nil {
		t.Error(err)
	}
	for range 2 { // the second finds nothing
		if err := Clean(f.Dir, "u-1"); err != nil {
			t.Errorf("Clean = %v", err)
		}
	}
	if _, err := os.Stat(f.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

// A link that a container leaves in a volume must lead nowhere: neither for
// removing nor for a subPath.
func TestLinksOutOfVolumes(t *testing.T) {
	f := testFiles(t)
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.claim(); err != nil {
		t.Fatal(err)
	}
	v := corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}
	spec := &corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{}}
	if err := f.createVolume(spec, &v); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(f.volume("v"), "link")); err != nil {
		t.Fatal(err)
	}
	got, err := f.mountSource(&v, "link/sub")
	if err != nil || !strings.HasPrefix(got, f.volume("v")+"/") {
		t.Errorf("mountSource = %q, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(outside, "sub")); err == nil {
		t.Error("the subPath was made outside of the volume")
	}
	if err := Clean(f.Dir, "u-1"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(outside, "precious")); err != nil {
		t.Error(err)
	}
}

func TestEmptyDirModes(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	f := testFiles(t)
	group := int64(3000)
	for _, c := range []struct {
		name  string
		group *int64
		want  fs.FileMode
	}{
		{"plain", nil, fs.ModeDir | 0o777},
		{"grouped", &group, fs.ModeDir | fs.ModeSetgid | 0o777},
	} {
		v := corev1.Volume{Name: c.name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}
		if err := f.createVolume(&corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{FSGroup: c.group}}, &v); err != nil {
			t.Fatal(err)
		}
		sub, err := f.mountSource(&v, "a")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{f.volume(c.name), sub} {
			info, err := os.Stat(path)
			if err != nil || info.Mode() != c.want {
				t.Errorf("%s: mode %v, want %v; %v", path, info.Mode(), c.want, err)
			}
		}
	}
}

func TestHostPathTypes(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		kind corev1.HostPathType
		ok   bool
	}{
		{dir, corev1.HostPathUnset, true},
		{dir + "/none", corev1.HostPathUnset, true}, // the runtime will say
		{dir, corev1.HostPathDirectory, true},
		{file, corev1.HostPathDirectory, false},
		{dir + "/none", corev1.HostPathDirectory, false},
		{dir + "/new/dir", corev1.HostPathDirectoryOrCreate, true},
		{file, corev1.HostPathDirectoryOrCreate, false},
		{file, corev1.HostPathFile, true},
		{dir, corev1.HostPathFile, false},
		{dir + "/new/file", corev1.HostPathFileOrCreate, true},
		{dir + "/no/parent", corev1.HostPathFileOrCreate, false},
		{"/dev/null", corev1.HostPathCharDev, true},
		{"/dev/null", corev1.HostPathBlockDev, false},
		{"/dev/null", corev1.HostPathSocket, false},
	} {
		if err := checkHostPath(c.path, c.kind); (err == nil) != c.ok {
			t.Errorf("checkHostPath(%s, %q) = %v", c.path, c.kind, err)
		}
	}
}

func TestHosts(t *testing.T) {
	f := testFiles(t)
	if err := f.claim(); err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{}
	pod.Name, pod.Namespace = "a", "shop"
	pod.Spec.Subdomain = "web"
	pod.Spec.HostAliases = []corev1.HostAlias{{IP: "192.0.2.9", Hostnames: []string{"db", "db.example"}}}
	if err := f.writeHosts(pod, []string{"10.1.2.3", "fd00::3"}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(f.hosts())
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/hosts.txt", string(got))
}

// The usual directory goes with its last pod, and others stay; a pod may come
// at any moment meanwhile.
func TestNoEmptyDirectory(t *testing.T) {
	top := t.TempDir()
	for parent, stays := range map[string]bool{"davit-play": false, "mine": true} {
		dir := filepath.Join(top, parent)
		first, second := Files{Dir: filepath.Join(dir, "u-1"), Logs: "/nonexistent/ns_a_u-1"}, Files{Dir: filepath.Join(dir, "u-2"), Logs: "/nonexistent/ns_b_u-2"}
		if err := errors.Join(first.claim(), second.claim(), Clean(first.Dir, "u-1")); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(second.Dir); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := Clean(second.Dir, "u-2"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(dir); stays != (err == nil) {
			t.Errorf("%s: %v", parent, err)
		}
	}
	done := make(chan error)
	for _, uid := range []string{"u-1", "u-2"} {
		go func() {
			f := Files{Dir: filepath.Join(top, "davit-play", uid), Logs: "/nonexistent/ns_a_" + uid}
			var err error
			for i := 0; i < 50 && err == nil; i++ {
				err = errors.Join(f.claim(), Clean(f.Dir, uid))
			}
			done <- err
		}()
	}
	if err := errors.Join(<-done, <-done); err != nil {
		t.Error(err)
	}
}
