// Package trial judges the image store by what its user sees: davitd is killed
// in the middle of pulls, or loses power, and whatever it shows afterwards must
// be whole; in the end nothing may be left of what came and went.
//
// DAVIT_TRIAL_KILLS and DAVIT_TRIAL_CUTS say how often, DAVIT_TRIAL_SEED
// repeats the random choices of an earlier run, DAVIT_TRIAL_CONFIG is added to
// davitd's configuration.
package trial

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// setting reads a number from the environment.
func setting(t *testing.T, name string, standard int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return standard
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// seed is the setting of that name, or something new.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := setting(t, "DAVIT_TRIAL_SEED", int(time.Now().UnixNano()%1e9))
	t.Logf("DAVIT_TRIAL_SEED=%d", s)
	return uint64(s)
}

// host is what the trials' images are called by: the address of their registry
// is not the same for everybody.
const host = "trial.example"

func (s sample) ref() string { return host + "/trial:" + s.tag }

// configuration has davitd look for the images at endpoint.
func configuration(endpoint string) string {
	return os.Getenv("DAVIT_TRIAL_CONFIG") + fmt.Sprintf("\n[registries.%q]\nendpoints = [%q]\n", host, endpoint)
}

// A world is a davitd on trial.
type world struct {
	t       *testing.T
	d       *testkit.Daemon
	c       *testkit.Client
	samples []sample
	checked int // images
}

// check compares every image that is listed with what it must be, and returns
// which of the samples they are.
func (w *world) check(ctx context.Context) (listed []sample) {
	w.t.Helper()
	images, err := w.c.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	if len(images.Images) == 0 {
		return nil
	}
	pod := testkit.PodConfig("judge", w.d.Logs)
	pod.Hostname, pod.Linux.SecurityContext.NamespaceOptions.Network = "", runtimeapi.NamespaceMode_NODE
	podID, err := w.c.RunPod(ctx, pod)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, image := range images.Images {
		i := slices.IndexFunc(w.samples, func(s sample) bool { return s.id == image.Id })
		if i < 0 {
			w.t.Errorf("a strange image is listed: %v", image)
			continue
		}
		listed = append(listed, w.samples[i])
		w.checked++
		if diff, err := w.compare(ctx, podID, pod, w.samples[i]); err != nil || diff != "" {
			w.t.Errorf("%s is listed, but not whole: %v\n%s", w.samples[i].tag, err, diff)
		}
	}
	if err := w.c.RemovePod(ctx, podID); err != nil {
		w.t.Error(err)
	}
	return listed
}

// compare makes a container of an image and looks at its files.
func (w *world) compare(ctx context.Context, podID string, pod *runtimeapi.PodSandboxConfig, s sample) (string, error) {
	config := testkit.ContainerConfig(s.tag, s.id)
	config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	created, err := w.c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: config, SandboxConfig: pod})
	if err != nil {
		return "", err
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != "overlay" || filepath.Base(m.Mountpoint) != created.ContainerId, false
	})
	if err != nil || len(mounts) != 1 {
		return "", fmt.Errorf("%d mounts for %s, want 1: %w", len(mounts), created.ContainerId, err)
	}
	got, err := readTree(mounts[0].Mountpoint)
	if err != nil {
		return "", err
	}
	diff := s.want.diff(got)
	_, err = w.c.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: created.ContainerId})
	return diff, err
}

// removeImages removes all samples.
func (w *world) removeImages(ctx context.Context) {
	w.t.Helper()
	for _, s := range w.samples {
		if _, err := w.c.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: s.ref()}}); err != nil {
			w.t.Errorf("remove %s: %v", s.tag, err)
		}
	}
}

// An inventory is what a davitd without images and pods has: files below its
// root, mounts below its directories, loop devices.
type inventory struct {
	items map[string]bool
	bytes int64
}

// slack is how much larger the database may be: it grows, and gives nothing back.
const slack = 4 << 20

func (w *world) inventory() inventory {
	w.t.Helper()
	v := inventory{items: map[string]bool{}}
	err := filepath.WalkDir(w.d.Root, func(at string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went meanwhile
		}
		if err != nil {
			return err
		}
		if info, err := d.Info(); err == nil {
			v.items["file "+at] = true
			v.bytes += info.Size()
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, m := range mounts {
		if strings.HasPrefix(m.Mountpoint, w.d.Root) || strings.HasPrefix(m.Mountpoint, w.d.State) {
			v.items["mount "+m.Mountpoint] = true
		}
	}
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range backing {
		if text, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(text), w.d.Root) {
			v.items["loop device of "+strings.TrimSpace(string(text))] = true
		}
	}
	return v
}

// settled is the inventory once nothing is being removed any more.
func (w *world) settled() inventory {
	w.t.Helper()
	last := w.inventory()
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); {
		time.Sleep(200 * time.Millisecond)
		now := w.inventory()
		if maps.Equal(now.items, last.items) {
			return now
		}
		last = now
	}
	w.t.Error("files come and go though nothing is asked for")
	return last
}

// mustBe waits until there is no more than what before has.
func (w *world) mustBe(before inventory) {
	w.t.Helper()
	var left []string
	var bytes int64
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		now := w.inventory()
		left = left[:0]
		for item := range now.items {
			if !before.items[item] {
				left = append(left, item)
			}
		}
		if bytes = now.bytes - before.bytes; len(left) == 0 && bytes < slack {
			return
		}
	}
	slices.Sort(left)
	w.t.Errorf("left behind: %d bytes more than before, and\n%s", bytes, strings.Join(left, "\n"))
}
