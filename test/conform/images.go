package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

const (
	passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
`
	group = `root:x:0:
daemon:x:1:
www-data:x:33:
users:x:100:
nobody:x:65534:
`
)

// mirrors are the registries that the suite's images are from.
var mirrors = []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io"}

// pushImages makes every image that the suite names and stores it at host
// under its path without the registry.
func pushImages(host, dir string) error {
	stand, err := buildStand(dir)
	if err != nil {
		return err
	}
	base, err := userland(stand)
	if err != nil {
		return err
	}
	push := func(name string, config v1.Config, extra ...testkit.File) error {
		config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
		layers := [][]testkit.File{base}
		if len(extra) > 0 {
			layers = append(layers, extra)
		}
		img, err := testkit.NewImage(testkit.ImageSpec{Layers: layers, Config: config})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return testkit.Push(host+"/"+name, img)
	}
	shell := v1.Config{Cmd: []string{"sh"}}
	program := func(path string, mode int64) testkit.File { return testkit.File{Name: path, Data: stand, Mode: mode} }
	const staging = "k8s-staging-cri-tools/"
	errs := []error{
		push("pause:3.9", v1.Config{Entrypoint: []string{"sleep", "1000000"}, User: "65535:65535"}),
		push("e2e-test-images/busybox:1.29-2", shell),
		// `pidof nginx` must be what /var/run/nginx.pid says, and /proc/1/cmdline must have "master process".
		push("e2e-test-images/nginx:1.14-2", v1.Config{Entrypoint: []string{"nginx", "80", "master process"}}, program("usr/sbin/nginx", 0o755)),
		push("e2e-test-images/httpd:2.4.39-4", v1.Config{Entrypoint: []string{"/usr/local/bin/httpd", "80", "httpd -D FOREGROUND"}}, program("usr/local/bin/httpd", 0o755)),
		push("e2e-test-images/nonewprivs:1.3", v1.Config{Entrypoint: []string{"/nonewprivs"}}, program("nonewprivs", 0o4755)),
		push(staging+"hostnet-nginx-amd64:latest", v1.Config{Entrypoint: []string{"nginx", "12003", "master process"}}, program("usr/sbin/nginx", 0o755)),
		push(staging+"test-image-predefined-group:latest", v1.Config{Cmd: []string{"sh"}, User: "1000"},
			testkit.File{Name: "home/default-user/"},
			testkit.File{Name: "etc/passwd", Data: []byte(passwd + "default-user:x:1000:1000::/home/default-user:/bin/sh\n")},
			testkit.File{Name: "etc/group", Data: []byte(group + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")}),
	}
	for name, marker := range map[string]string{
		"test-image-1:latest": "1", "test-image-2:latest": "2", "test-image-3:latest": "3", "test-image-latest:latest": "latest",
		"test-image-tags:1": "tags", "test-image-tags:2": "tags", "test-image-tags:3": "tags",
		"test-image-tag:test": "tag", "test-image-tag:all": "tag",
	} {
		errs = append(errs, push(staging+name, shell, testkit.File{Name: "marker-" + marker}))
	}
	for name, user := range map[string]string{
		"user-uid": "1002", "user-username": "www-data", "user-uid-group": "1003:1004", "user-username-group": "www-data:1004",
	} {
		errs = append(errs, push(staging+"test-image-"+name+":latest", v1.Config{Cmd: []string{"sh"}, User: user}))
	}
	return errors.Join(errs...)
}

// buildStand builds the stand-in programs, static.
func buildStand(dir string) ([]byte, error) {
	out := filepath.Join(dir, "stand")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, "./test/conform/stand")
	top, err := testkit.Top()
	if err != nil {
		return nil, err
	}
	cmd.Dir, cmd.Env = top, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the stand-in programs: %w\n%s", err, text)
	}
	return os.ReadFile(out)
}

// userland returns busybox with every applet as a hard link, as in the
// official image, plus what Debian's lacks.
func userland(stand []byte) ([]testkit.File, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, err
	}
	// The suite masks /bin/ls and expects `sh -c ls` to notice. Debian's shell
	// would run its own ls; this copy has none.
	const have, want = "\x00ls\x00lsmod\x00", "\x00lr\x00lsmod\x00"
	if !bytes.Contains(busybox, []byte(have)) {
		return nil, errors.New("/bin/busybox has no applet ls where it was expected")
	}
	files := []testkit.File{
		{Name: "tmp/", Mode: 0o1777},
		{Name: "bin/"},
		{Name: "bin/busybox", Data: busybox, Mode: 0o755},
		{Name: "bin/sh", Data: bytes.Replace(busybox, []byte(have), []byte(want), 1), Mode: 0o755},
		{Name: "usr/bin/pgrep", Data: stand, Mode: 0o755},
		{Name: "usr/bin/ipcs", Linkname: "usr/bin/pgrep", Hard: true},
		{Name: "etc/passwd", Data: []byte(passwd)},
		{Name: "etc/group", Data: []byte(group)},
	}
	for _, dir := range []string{"dev/", "etc/", "home/", "mnt/", "proc/", "root/", "sbin/", "sys/", "usr/", "usr/bin/", "usr/sbin/", "usr/local/", "usr/local/bin/", "var/", "var/run/", "var/www/"} {
		files = slices.Insert(files, 0, testkit.File{Name: dir})
	}
	slices.SortStableFunc(files, func(a, b testkit.File) int { return strings.Count(a.Name, "/") - strings.Count(b.Name, "/") })
	list, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return nil, err
	}
	for _, applet := range strings.Fields(string(list)) {
		if applet != "busybox" && applet != "sh" {
			files = append(files, testkit.File{Name: "bin/" + applet, Linkname: "bin/busybox", Hard: true})
		}
	}
	return files, nil
}
