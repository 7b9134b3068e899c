package contract

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

var (
	endpoint      = flag.String("endpoint", "", "CRI `socket` to hold to the contract, unix:///…; without it, a davitd of the suite's own")
	imageEndpoint = flag.String("image-endpoint", "", "`socket` of the image service, if it is another")
	namedImage    = flag.String("image", "", "`image` with busybox, for a runtime that cannot pull from a registry on loopback")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if *endpoint == "" {
		if code, inside := testkit.Inside(); !inside {
			os.Exit(code)
		}
	}
	code := m.Run()
	if err := common.close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(report(code))
}

// common is what tests share.
var common session

// A session is a connection to a runtime, and what is needed to leave it as it was.
type session struct {
	world    *world
	dir      string
	images   *testkit.Images
	pulled   []string
	baseline *testkit.Baseline
	imageAPI *testkit.Client
}

// shared returns the world that tests share. It is empty again after the test.
func shared(t *testing.T) *world {
	t.Helper()
	judged(t)
	if *endpoint == "" {
		testkit.Root(t)
	}
	if common.world == nil {
		if err := common.open(); err != nil {
			t.Fatal(errors.Join(err, common.close()))
		}
	}
	w := *common.world
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	t.Cleanup(cancel)
	w.t, w.ctx = t, ctx
	logged := len(w.log())
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := w.clear(ctx); err != nil {
			t.Error(err)
		}
		if left := w.residue(); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		if log := w.log(); t.Failed() && len(log) > logged {
			t.Logf("davitd's log:\n%s", log[logged:])
		}
	})
	return &w
}

// log is what davitd wrote, if it is the suite's own.
func (w *world) log() string {
	if w.d == nil {
		return ""
	}
	text, err := os.ReadFile(w.d.LogFile)
	if err != nil {
		w.t.Error(err)
	}
	return string(text)
}

func (s *session) open() (err error) {
	if s.dir, err = os.MkdirTemp("", "davit-contract-"); err != nil {
		return err
	}
	id := make([]byte, 4)
	_, _ = rand.Read(id)
	w := &world{ctx: context.Background(), own: "contract-" + hex.EncodeToString(id), logs: filepath.Join(s.dir, "logs")}
	if err := os.MkdirAll(w.logs, 0o755); err != nil {
		return err
	}
	if *endpoint == "" {
		s.baseline = testkit.NewBaseline()
		w.d, err = testkit.StartDaemon(s.dir, "")
		s.world = w
		if err != nil {
			return err
		}
		w.c, err = testkit.Dial("unix://" + w.d.Socket)
	} else {
		w.c, err = testkit.Dial(*endpoint)
	}
	s.world = w
	if err != nil {
		return err
	}
	if *imageEndpoint != "" {
		if s.imageAPI, err = testkit.Dial(*imageEndpoint); err != nil {
			return err
		}
		w.c.ImageServiceClient = s.imageAPI.ImageServiceClient
	}
	return s.prepare()
}

// prepare learns who answers, and pulls the image.
func (s *session) prepare() error {
	w := s.world
	ctx, cancel := context.WithTimeout(w.ctx, 2*time.Minute)
	defer cancel()
	v, err := w.c.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return fmt.Errorf("version of %s: %w", *endpoint, err)
	}
	foreign = v.RuntimeName != "davit"
	// What davitd tries out in containers, once, is done when it says what it can do.
	if _, err := w.c.RuntimeServiceClient.Status(ctx, &runtimeapi.StatusRequest{}); err != nil {
		return fmt.Errorf("status of %s: %w", *endpoint, err)
	}
	if w.d == nil {
		w.group = "/" + w.own
		if c, err := w.c.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{}); err == nil && c.Linux.GetCgroupDriver() == runtimeapi.CgroupDriver_SYSTEMD {
			w.group = strings.ReplaceAll(w.own, "-", "") + ".slice"
		} else if err := w.makeGroups(); err != nil {
			return err
		}
	}
	if *namedImage != "" {
		w.image = *namedImage
	} else {
		if s.images, err = testkit.ServeImages(); err != nil {
			return err
		}
		img, err := testkit.Busybox()
		if err != nil {
			return err
		}
		w.image = s.images.Host + "/contract/busybox:1"
		if err := testkit.Push(w.image, img); err != nil {
			return err
		}
	}
	return s.pull(ctx, w.image)
}

// pull pulls an image, which goes with the session if it was not there before.
func (s *session) pull(ctx context.Context, ref string) error {
	spec := &runtimeapi.ImageSpec{Image: ref}
	r, err := s.world.c.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil {
		return fmt.Errorf("status of image %s: %w", ref, err)
	}
	if _, err := s.world.c.Pull(ctx, ref); err != nil {
		return fmt.Errorf("pull %s: %w (if the runtime cannot pull from loopback without TLS, name an image)", ref, err)
	}
	if r.GetImage() == nil {
		s.pulled = append(s.pulled, ref)
	}
	return nil
}

// close leaves the runtime as it was. Closing twice does nothing.
func (s *session) close() error {
	var errs []error
	if s.world != nil && s.world.c != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		errs = append(errs, s.world.clear(ctx))
		for _, ref := range s.pulled {
			_, err := s.world.c.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
			errs = append(errs, err)
		}
		s.world.c.Close()
	}
	if s.imageAPI != nil {
		s.imageAPI.Close()
	}
	if s.images != nil {
		s.images.Close()
	}
	if s.world != nil && s.world.group != "" {
		errs = append(errs, s.world.removeGroups())
	}
	if s.world != nil && s.world.d != nil {
		errs = append(errs, s.world.d.Close())
		for _, l := range s.baseline.Left() {
			errs = append(errs, errors.New("left behind by the shared davitd: "+l))
		}
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	*s = session{}
	return errors.Join(errs...)
}

// makeGroups makes the pods' cgroup: with the driver cgroupfs a kubelet does.
func (w *world) makeGroups() error {
	hierarchies := []string{"/sys/fs/cgroup"}
	if !onV2() {
		hierarchies = nil
		for _, procs := range glob("/sys/fs/cgroup/*/cgroup.procs") {
			hierarchies = append(hierarchies, filepath.Dir(procs))
		}
	}
	for _, dir := range hierarchies {
		if err := os.Mkdir(dir+w.group, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// removeGroups removes the cgroups that are named after the suite, as a kubelet
// does with those that it gives to pods.
func (w *world) removeGroups() error {
	var dirs []string
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		for _, top := range glob(pattern + strings.TrimSuffix(strings.TrimPrefix(w.group, "/"), ".slice") + "*") {
			err := filepath.WalkDir(top, func(path string, entry os.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					dirs = append(dirs, path)
				}
				return err
			})
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	var errs []error
	for _, dir := range slices.Backward(dirs) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func glob(pattern string) []string {
	found, _ := filepath.Glob(pattern)
	return found
}

// pods lists the pods that the suite made, and no others.
func (w *world) pods(ctx context.Context) ([]*runtimeapi.PodSandbox, error) {
	list, err := w.c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list.Items, func(p *runtimeapi.PodSandbox) bool { return p.Metadata.GetNamespace() != w.own }), nil
}

// clear removes every pod that the suite made.
func (w *world) clear(ctx context.Context) error {
	pods, err := w.pods(ctx)
	errs := []error{err}
	for _, p := range pods {
		errs = append(errs, w.removePod(ctx, p.Id))
	}
	return errors.Join(errs...)
}

// residue lists, sorted, what the suite has on the runtime: pods, their containers, and
// with a davitd of its own whatever davitd's directories have for either.
func (w *world) residue() []string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pods, err := w.pods(ctx)
	if err != nil {
		w.t.Errorf("ListPodSandbox: %v", err)
	}
	var have []string
	ours := map[string]bool{}
	for _, p := range pods {
		ours[p.Id] = true
		have = append(have, fmt.Sprintf("pod %s (%s, %s)", p.Id, p.Metadata.Name, p.State))
	}
	list, err := w.c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		w.t.Errorf("ListContainers: %v", err)
	}
	for _, c := range list.GetContainers() {
		if ours[c.PodSandboxId] || w.d != nil {
			have = append(have, fmt.Sprintf("container %s (%s, %s)", c.Id, c.Metadata.Name, c.State))
		}
	}
	if w.d != nil {
		for _, pattern := range []string{"pods/*", "containers/*", "exits/*", "images/rootfs/*"} {
			for _, dir := range []string{w.d.Root, w.d.State} {
				have = append(have, slices.DeleteFunc(glob(filepath.Join(dir, pattern)), func(path string) bool {
					return len(filepath.Base(path)) != 64
				})...)
			}
		}
	}
	slices.Sort(have)
	return have
}
