package kubelet

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// upgraded are the pods under which davit is replaced.
var upgraded = []string{"init", "probes", "hostport", "termination", "terminal"}

// davitd is replaced by a newer one and by the older one again, and ceases to
// serve v1alpha2, under a kubelet that runs.
func TestUpgradeUnderKubelet(t *testing.T) {
	for _, version := range []string{newest, oldest} {
		t.Run(version, func(t *testing.T) {
			kubeletOf(t, version)
			if *endpoint != "" {
				t.Skip("starts davitd itself")
			}
			u := newUpgrade(t, version)
			t.Run("to the newer", func(t *testing.T) { u.replace(t, u.newer) })
			t.Run("and back", func(t *testing.T) { u.replace(t, u.older) })
			t.Run("to the newer again", func(t *testing.T) { u.replace(t, u.newer) })
			if u.minor() >= 26 {
				t.Run("without v1alpha2", func(t *testing.T) { u.unmoved(t) })
			} else {
				t.Run("without v1alpha2", func(t *testing.T) { u.locked(t) })
			}
			u.take(upgraded...)
			u.runtime.empty(t)
		})
	}
}

// An upgrade is a node whose davit can be replaced.
type upgrade struct {
	*node
	older, newer string // directories of programs
}

// newUpgrade starts a node with the older davit, all of it, and with pods.
func newUpgrade(t *testing.T, version string) *upgrade {
	t.Helper()
	r := newRuntime(t, "")
	u := &upgrade{newer: r.davit.Bin, older: r.davit.Bin}
	if *previous != "" {
		older, err := filepath.Abs(*previous)
		if err != nil {
			t.Fatal(err)
		}
		u.older = older
	}
	// What it started already is newer, too: the keeper and the monitor.
	if err := errors.Join(r.davit.Stop(), r.davit.EndMonitor()); err != nil {
		t.Fatal(err)
	}
	r.davit.Bin = u.older
	if err := r.davit.Start(); err != nil {
		t.Fatal(err)
	}
	u.node = newNode(t, version, r, nil)
	var cases []podCase
	for _, c := range podCases {
		if slices.Contains(upgraded, c.name) {
			cases = append(cases, c)
			u.put(u.manifest(c.name))
		}
	}
	u.come(t, cases, time.Now())
	return u
}

// replace ends davitd and starts that of another directory.
func (u *upgrade) replace(t *testing.T, bin string) {
	before, mark := u.lives(), len(u.log())
	if err := u.runtime.davit.Stop(); err != nil {
		t.Fatal(err)
	}
	u.runtime.davit.Bin = bin
	u.back(t, before, mark)
	out, err := exec.Command(filepath.Join(bin, "davitd"), "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	v, err := u.runtime.client(t).Version(t.Context(), &runtimeapi.VersionRequest{})
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), " "+v.RuntimeVersion) {
		t.Errorf("davitd says that it is %v: %v; the program says %q", v, err, out)
	}
	t.Logf("figure: now davit %s", v.GetRuntimeVersion())
	u.works(t, "after-"+strings.ReplaceAll(filepath.Base(t.Name()), "_", "-"))
}

// serve has davitd serve these versions of the CRI from now on.
func (u *upgrade) serve(t *testing.T, versions string) {
	t.Helper()
	d := u.runtime.davit
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.Config, []byte("cri_versions = ["+versions+"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// unmoved: who speaks v1 does not notice that v1alpha2 is gone.
func (u *upgrade) unmoved(t *testing.T) {
	before, mark := u.lives(), len(u.log())
	u.serve(t, `"v1"`)
	u.back(t, before, mark)
	u.works(t, "only-v1")
}

// locked: who speaks only v1alpha2 is answered Unimplemented. Its pods run on,
// its node gets not Ready, and once ended it cannot start: a change of version
// needs a kubelet that speaks the other. CRI: a redial keeps the version first
// chosen (Kubernetes: docs/concepts/containers/cri, "Upgrading").
func (u *upgrade) locked(t *testing.T) {
	before, mark, ids := u.lives(), len(u.log()), u.running(t)
	u.serve(t, `"v1"`)
	if err := u.runtime.davit.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 90*time.Second, func() error {
		said := u.log()[mark:]
		if !strings.Contains(said, "Unimplemented") || !troubled.MatchString(said) {
			return errors.New("the kubelet does not say that its runtime is down")
		}
		return nil
	})
	if now := u.running(t); !slices.Equal(now, ids) {
		t.Errorf("containers that ran were %v, are %v", ids, now)
	}
	// Both again: it goes on without a restart.
	u.serve(t, `"v1", "v1alpha2"`)
	if err := u.runtime.davit.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error { return same(before, u.lives()) })
	u.works(t, "both-again")

	u.serve(t, `"v1"`)
	if err := u.runtime.davit.Start(); err != nil {
		t.Fatal(err)
	}
	u.stop()
	err := u.tryStart()
	if err == nil || !strings.Contains(err.Error(), "ended") || !strings.Contains(err.Error(), "Unimplemented") {
		t.Errorf("a kubelet whose version is not served: %v", err)
	}
	u.cmd = nil
	if now := u.running(t); !slices.Equal(now, ids) {
		t.Errorf("containers that ran were %v, are %v", ids, now)
	}
	u.serve(t, `"v1", "v1alpha2"`)
	if err := u.runtime.davit.Start(); err != nil {
		t.Fatal(err)
	}
	u.start()
	eventually(t, 30*time.Second, func() error { return same(before, u.lives()) })
	u.works(t, "started-again")
}

// running returns the IDs of the containers that run.
func (u *upgrade) running(t *testing.T) []string {
	t.Helper()
	list, err := u.runtime.client(t).ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, c := range list.Containers {
		ids = append(ids, fmt.Sprintf("%s/%s", c.Metadata.Name, c.Id))
	}
	slices.Sort(ids)
	return ids
}
