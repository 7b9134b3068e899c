package contract

import (
	"bytes"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// damages are what may become of a file while davitd is down.
var damages = []struct {
	name string
	do   func(path string) error
}{
	{"deleted", os.Remove},
	{"cut", func(path string) error {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		return os.Truncate(path, info.Size()/2)
	}},
	{"turned", func(path string) error { // every other bit, in the middle and at the beginning
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i := range text {
			if i < 3 || i > len(text)/2 && i < len(text)/2+40 {
				text[i] ^= 0x55
			}
		}
		return os.WriteFile(path, text, 0o600)
	}},
	{"of a later version", func(path string) error {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(path, bytes.Replace(text, []byte(`"version": 1`), []byte(`"version": 2`), 1), 0o600)
	}},
}

// files are those that davitd has written for itself, but for the content of
// images and containers.
func (w *world) files() (all []string) {
	w.t.Helper()
	walk := func(dir string, keep func(path string) bool) {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case e.IsDir() && (e.Name() == "fs" || e.Name() == "layers" || e.Name() == "upper" || e.Name() == "work" || e.Name() == "damaged"):
				return fs.SkipDir
			case e.Type().IsRegular() && keep(path):
				all = append(all, path)
			}
			return nil
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	walk(w.d.Root, func(string) bool { return true })
	for _, kind := range []string{"pods", "containers"} {
		walk(filepath.Join(w.d.State, kind), func(path string) bool { return filepath.Base(path) == "record.json" })
	}
	return all
}

// TestFilesLost: whatever becomes of davitd's files, davitd serves, what runs
// runs on and is told as before, and what was lost is told.
func TestFilesLost(t *testing.T) {
	w := newWorld(t, "")
	if _, err := w.c.UpdateRuntimeConfig(w.ctx, &runtimeapi.UpdateRuntimeConfigRequest{
		RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "10.85.3.0/24"}},
	}); err != nil {
		t.Fatal(err)
	}
	config := testkit.PodConfig("lossless", w.d.Logs)
	config.PortMappings = []*runtimeapi.PortMapping{{HostPort: 8099, ContainerPort: 80}}
	podID, err := w.c.RunPod(w.ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	id := w.run(podID, config, w.config("web", "sh", "-c", "mkdir /w; echo page >/w/index.html; exec httpd -f -p 80 -h /w"))
	w.await("the trials to be over", func() bool {
		trials, _ := filepath.Glob(filepath.Join(w.d.Root, "trials", "*.json"))
		return len(trials) == 2
	})
	lossless := w.remember(podID, id)
	// What makes up for each other is not lost at once.
	group := func(path string) string {
		switch base := filepath.Base(path); {
		case strings.HasPrefix(path, w.d.State):
			return "copies of records"
		case base == "record.json":
			return "records"
		case strings.HasSuffix(base, ".copy"):
			return "copies"
		}
		return "others"
	}
	for _, which := range []string{"records", "copies of records", "copies", "others"} {
		for _, damage := range damages {
			t.Run(which+" "+damage.name, func(t *testing.T) {
				w := w.within(t)
				w.d.Kill() // first: what it deletes on the side is no file of its own
				files := slices.DeleteFunc(w.files(), func(path string) bool { return group(path) != which })
				if len(files) == 0 {
					t.Fatal("no such files")
				}
				for _, file := range files {
					if err := damage.do(file); err != nil {
						t.Fatal(err)
					}
				}
				begun := time.Now()
				if err := w.d.Start(); err != nil {
					t.Fatalf("%q: %v", files, err)
				}
				if took := time.Since(begun); took > 10*time.Second {
					t.Errorf("davitd served after %v", took)
				}
				lossless(t)
				if c := w.trouble(); which == "records" && damage.name != "deleted" && (c.Status || !strings.Contains(c.Message, filepath.Join(w.d.Root, "damaged"))) {
					t.Errorf("%q: %v", files, c)
				}
				if _, err := w.c.Pull(w.ctx, w.image); err != nil {
					t.Errorf("pull: %v", err)
				}
				for _, file := range files {
					if _, err := os.Stat(file); err != nil && which != "others" {
						t.Errorf("it is not there again: %v", err)
					}
				}
				if err := os.RemoveAll(filepath.Join(w.d.Root, "damaged")); err != nil {
					t.Error(err)
				}
			})
		}
	}
	w.await("damage that somebody has looked at is told no more", func() bool { return w.trouble().Status })
}

// remember returns a function that requires a pod and its container to be what
// they are now, and to serve a page.
func (w *world) remember(podID, id string) func(t *testing.T) {
	tell := func(t *testing.T) (*runtimeapi.PodSandboxStatus, *runtimeapi.ContainerStatus, int) {
		w := w.within(t)
		pod, err := w.c.PodSandboxStatus(w.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID})
		if err != nil {
			t.Fatal(err)
		}
		return pod.Status, w.status(id), w.pid(id)
	}
	pod, container, pid := tell(w.t)
	return func(t *testing.T) {
		t.Helper()
		nowPod, now, nowPid := tell(t)
		if !proto.Equal(nowPod, pod) || !proto.Equal(now, container) || nowPid != pid {
			t.Errorf("%v\n%v\nbefore\n%v\n%v", nowPod, now, pod, container)
		}
		if text, err := httpGet("127.0.0.1:8099"); err != nil || text != "page\n" {
			t.Errorf("the page is %q, %v", text, err)
		}
		w.within(t).says(id, "here", "echo", "here")
	}
}

func httpGet(address string) (string, error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get("http://" + address + "/")
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	return string(text), err
}
