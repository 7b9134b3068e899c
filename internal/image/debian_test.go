package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/davit-runtime/davit/internal/testkit"
)

// TestDockerRegistry pulls from a real registry, Debian's docker-registry, what
// somebody else's client pushed there.
func TestDockerRegistry(t *testing.T) {
	testkit.Root(t)
	host := startDockerRegistry(t)
	img, err := random.Image(200_000, 3)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Config.Cmd = "linux", "amd64", []string{"/run"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, t.TempDir())
	for kind, mediaType := range map[string]types.MediaType{"oci": types.OCIManifestSchema1, "docker": types.DockerManifestSchema2} {
		ref, err := name.ParseReference(host + "/some/repo:" + kind)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, mutate.MediaType(img, mediaType)); err != nil {
			t.Fatal(err)
		}
		got, err := s.Pull(context.Background(), ref.String(), PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		want, err := img.ConfigName()
		if err != nil || got.ID != want.String() || len(got.Config.Config.Cmd) != 1 {
			t.Errorf("%s: %+v, want %s", kind, got, want)
		}
		path, err := s.Mount(context.Background(), kind, got.ID, MountOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if files := names(t, path); len(files) != 3 {
			t.Errorf("%v", files)
		}
		if err := s.Unmount(context.Background(), kind); err != nil {
			t.Error(err)
		}
	}
}

func startDockerRegistry(t *testing.T) (host string) {
	t.Helper()
	binary, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Fatal("this test needs Debian's docker-registry: ", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host = l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: '%s'}\n", dir, host)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "serve", config)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(strings.TrimSpace(said.String()))
		}
	})
	waitFor(t, func() bool {
		resp, err := http.Get("http://" + host + "/v2/")
		if err != nil {
			return false
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	})
	return host
}
