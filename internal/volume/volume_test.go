package volume

import (
	"os"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestMakeVolumes(t *testing.T) {
	rootfs, dir := t.TempDir(), filepath.Join(t.TempDir(), "volumes")
	must(t, os.MkdirAll(filepath.Join(rootfs, "data/sub"), 0o750))
	must(t, os.WriteFile(filepath.Join(rootfs, "data/sub/file"), []byte("content"), 0o604))
	must(t, os.Symlink("/outside", filepath.Join(rootfs, "data/link")))
	must(t, os.Symlink("/data", filepath.Join(rootfs, "alias")))
	must(t, os.Symlink("../../../../../..", filepath.Join(rootfs, "escape")))
	must(t, os.Chmod(filepath.Join(rootfs, "data"), 0o777|os.ModeSticky))
	mounts, err := Make(map[string]struct{}{
		"/data": {}, "C:/x": {}, "/:x": {}, "/covered/": {}, "/alias": {}, "/": {}, "/data/": {}, "/escape/x": {},
	}, []*runtimeapi.Mount{{ContainerPath: "/covered"}}, rootfs, dir)
	must(t, err)
	got := map[string]string{}
	for _, m := range mounts {
		got[m.ContainerPath] = m.HostPath
	}
	if len(got) != 5 || got["/data"] == "" || got["/C:/x"] == "" || got["/:x"] == "" || got["/escape/x"] == "" {
		t.Fatalf("%v", got)
	}
	for _, at := range []string{"/data", "/alias"} {
		info, err := os.Stat(got[at])
		must(t, err)
		if info.Mode().Perm() != 0o777 || info.Mode()&os.ModeSticky == 0 {
			t.Errorf("%s: mode %v", at, info.Mode())
		}
		if content, _ := os.ReadFile(filepath.Join(got[at], "sub/file")); string(content) != "content" {
			t.Errorf("%s: %q", at, content)
		}
		info, err = os.Stat(filepath.Join(got[at], "sub/file"))
		if err != nil || info.Mode() != 0o604 {
			t.Errorf("%s: %v, %v", at, info, err)
		}
		if target, _ := os.Readlink(filepath.Join(got[at], "link")); target != "/outside" {
			t.Errorf("%s: link to %q", at, target)
		}
	}
	if entries, _ := os.ReadDir(got["/escape/x"]); len(entries) > 0 {
		t.Errorf("from outside the image: %v", entries)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
