package ocispec

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

const (
	somePasswd = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001::/home/web:/bin/sh\n1234:x:55:56::relative:\nbad:x:-3:0::/:\n"
	someGroups = "root:x:0:\nweb:x:1001:\nlogs:x:7:web,other\ndisk:x:6:root,web\n# comment:x:8:web\n"
)

func TestResolveUser(t *testing.T) {
	rootfs := t.TempDir()
	write(t, filepath.Join(rootfs, "etc/passwd"), somePasswd)
	write(t, filepath.Join(rootfs, "etc/group"), someGroups)
	type sc = runtimeapi.LinuxContainerSecurityContext
	n := func(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }
	const strict = runtimeapi.SupplementalGroupsPolicy_Strict
	for _, c := range []struct {
		image string
		sc    *sc
		want  User
		err   string
	}{
		{"", nil, User{Name: "root", Home: "/root", AdditionalGids: []uint32{0, 6}}, ""},
		{"web", nil, User{1000, 1001, []uint32{1001, 7, 6}, "web", "/home/web"}, ""},
		{"1000", nil, User{1000, 1001, []uint32{1001, 7, 6}, "web", "/home/web"}, ""},
		{"web:disk", nil, User{1000, 6, []uint32{6, 7}, "web", "/home/web"}, ""},
		{"web:99", nil, User{1000, 99, []uint32{99, 7, 6}, "web", "/home/web"}, ""},
		{"77", nil, User{UID: 77, Home: "/", AdditionalGids: []uint32{0}}, ""}, // in no file
		{"77:88", nil, User{UID: 77, GID: 88, Home: "/", AdditionalGids: []uint32{88}}, ""},
		{":disk", nil, User{0, 6, []uint32{6}, "root", "/root"}, ""},
		{"1234", nil, User{55, 56, []uint32{56}, "1234", "/"}, ""}, // a name comes before a number
		{"web", &sc{RunAsUser: n(77)}, User{UID: 77, Home: "/", AdditionalGids: []uint32{0}}, ""},
		{"77:88", &sc{RunAsUser: n(1000)}, User{1000, 1001, []uint32{1001, 7, 6}, "web", "/home/web"}, ""}, // the image's group goes with its user
		{"", &sc{RunAsUser: n(0), RunAsGroup: n(5)}, User{0, 5, []uint32{5, 6}, "root", "/root"}, ""},
		{"", &sc{RunAsUsername: "web", SupplementalGroups: []int64{7, 2000, 2000}}, User{1000, 1001, []uint32{1001, 7, 6, 2000}, "web", "/home/web"}, ""},
		{"", &sc{RunAsUsername: "web", SupplementalGroups: []int64{2000}, SupplementalGroupsPolicy: strict}, User{1000, 1001, []uint32{1001, 2000}, "web", "/home/web"}, ""},
		{"", &sc{RunAsUsername: "1000"}, User{1000, 1001, []uint32{1001, 7, 6}, "web", "/home/web"}, ""},

		{"nobody", nil, User{}, `user "nobody"`},
		{"web:nogroup", nil, User{}, `group "nogroup"`},
		{"-1", nil, User{}, "out of range"},
		{"4294967296", nil, User{}, "out of range"},
		{"bad", nil, User{}, "out of range"},
		{"", &sc{RunAsUsername: "nobody"}, User{}, `user "nobody"`},
		{"", &sc{RunAsUser: n(-1)}, User{}, "out of range"},
		{"", &sc{RunAsUser: n(1), RunAsUsername: "web"}, User{}, "both"},
		{"", &sc{RunAsGroup: n(1)}, User{}, "run_as_group"},
		{"", &sc{RunAsUser: n(1), RunAsGroup: n(1 << 32)}, User{}, "out of range"},
		{"", &sc{SupplementalGroups: []int64{-5}}, User{}, "supplemental group -5"},
		{"", &sc{SupplementalGroupsPolicy: 5}, User{}, "policy 5"},
	} {
		got, err := ResolveUser(rootfs, c.sc, c.image)
		if c.err != "" {
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q %v: got %v, want Invalid with %q", c.image, c.sc, err, c.err)
			}
			continue
		}
		if d := cmp.Diff(c.want, got); err != nil || d != "" {
			t.Errorf("%q %v: %v %s", c.image, c.sc, err, d)
		}
	}
}

// An image's own files may be anything.
func TestResolveUserInOddImages(t *testing.T) {
	outside := t.TempDir()
	write(t, filepath.Join(outside, "passwd"), "web:x:4242:0::/:\n")
	for name, c := range map[string]struct {
		make func(t *testing.T, etc string) error
		want uint32
		err  string
	}{
		"no files":      {func(*testing.T, string) error { return nil }, 0, `user "web"`},
		"absolute link": {func(t *testing.T, etc string) error { return os.Symlink("/real/passwd", etc+"/passwd") }, 1000, ""},
		"link outside":  {func(t *testing.T, etc string) error { return os.Symlink(outside+"/passwd", etc+"/passwd") }, 0, `user "web"`},
		"dots": {func(t *testing.T, etc string) error {
			return os.Symlink("../../../../../../../.."+outside+"/passwd", etc+"/passwd")
		}, 0, `user "web"`},
		"FIFO":      {func(t *testing.T, etc string) error { return unix.Mkfifo(etc+"/passwd", 0o644) }, 0, "not a regular file"},
		"directory": {func(t *testing.T, etc string) error { return os.Mkdir(etc+"/passwd", 0o755) }, 0, "not a regular file"},
		"long line": {func(t *testing.T, etc string) error {
			return os.WriteFile(etc+"/passwd", []byte("x:"+strings.Repeat("y", 1<<20)), 0o644)
		}, 0, "/etc/passwd of the image"},
	} {
		t.Run(name, func(t *testing.T) {
			rootfs := t.TempDir()
			write(t, filepath.Join(rootfs, "real/passwd"), somePasswd)
			if err := os.Mkdir(filepath.Join(rootfs, "etc"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := c.make(t, filepath.Join(rootfs, "etc")); err != nil {
				t.Fatal(err)
			}
			u, err := ResolveUser(rootfs, nil, "web")
			switch {
			case c.err == "" && (err != nil || u.UID != c.want):
				t.Errorf("got %+v, %v", u, err)
			case c.err != "" && (!fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.err)):
				t.Errorf("got %+v, %v; want Invalid with %q", u, err, c.err)
			}
			if u, err := ResolveUser(rootfs, nil, ""); c.want == 0 && c.err == `user "web"` && (err != nil || u.UID != 0 || u.Home != "/") {
				t.Errorf("root: %+v, %v", u, err)
			}
		})
	}
}

func FuzzResolveUser(f *testing.F) {
	f.Add(somePasswd, someGroups, "web:disk")
	f.Add("a:b", ":::", "-0:+1")
	f.Add("", "", ":")
	f.Fuzz(func(t *testing.T, passwd, groups, image string) {
		name, group, err := userWanted(nil, image)
		if err != nil {
			t.Fatal(err)
		}
		u, err := resolveUser(passwd, groups, name, group, nil)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatal(err)
			}
			return
		}
		if !slices.Contains(u.AdditionalGids, u.GID) || !strings.HasPrefix(u.Home, "/") || u.UID > 1<<31 {
			t.Errorf("%+v", u)
		}
	})
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
