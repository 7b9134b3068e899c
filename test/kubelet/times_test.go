package kubelet

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// A load is what is timed: count pods made from a manifest at once.
type load struct {
	what     string
	manifest string
	count    int
	repeats  int
}

var loads = []load{
	{"one pod, one container", "plain", 1, 5},
	{"init containers, then one", "chain", 1, 3},
	{"Ready by probes", "probes", 1, 3},
	{"20 pods at once", "plain", 20, 2},
}

// Times from manifest to Ready, of davit and in turn of the runtime that
// -endpoint names, or of containerd where that is installed, with the same
// kubelet: a table. Nothing is required of them.
func TestTimes(t *testing.T) {
	kubeletOf(t, newest)
	first := newRuntime(t, "")
	contestants := []*runtime{first}
	if first.davit == nil {
		davit := testkit.NewDaemon(t, *configured+fmt.Sprintf("[network]\ncni_conf_dir = %q\nsubnets = [\"10.97.0.0/16\"]\n", t.TempDir()))
		contestants = []*runtime{{name: "davit", endpoint: "unix://" + davit.Socket, dir: openDir(t), davit: davit, cgroup: first.cgroup, images: first.images}, first}
		contestants[0].askDriver(t)
	}
	if program, err := exec.LookPath("containerd"); err == nil && first.davit != nil {
		contestants = append(contestants, newContainerd(t, program, first))
	}
	for _, r := range contestants {
		r.preload(t)
	}
	table := map[string][]time.Duration{}
	var columns []string
	for round := 1; round <= 2; round++ {
		for _, r := range contestants {
			column := fmt.Sprintf("%s %d", r.title(t), round)
			columns = append(columns, column)
			t.Run(column, func(t *testing.T) {
				n := newNode(t, newest, r, map[string]any{"maxPods": 200, "podPidsLimit": -1})
				for _, l := range loads {
					table[l.what+column] = n.timed(l)
				}
			})
		}
	}
	var lines strings.Builder
	for _, l := range loads {
		fmt.Fprintf(&lines, "%-28s", l.what)
		for _, column := range columns {
			took := table[l.what+column]
			if len(took) == 0 {
				continue
			}
			slices.Sort(took)
			fmt.Fprintf(&lines, "  %s: %.2f s (%.2f–%.2f)", column, took[len(took)/2].Seconds(), took[0].Seconds(), took[len(took)-1].Seconds())
		}
		t.Logf("figure: %s", lines.String())
		lines.Reset()
	}
}

// title is what the runtime calls itself.
func (r *runtime) title(t *testing.T) string {
	t.Helper()
	v, err := r.client(t).Version(t.Context(), &runtimeapi.VersionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return v.RuntimeName + " " + v.RuntimeVersion
}

// timed returns how long a load took until all its pods were Ready, each time.
func (n *node) timed(l load) []time.Duration {
	n.t.Helper()
	var all []time.Duration
	for i := range l.repeats {
		var names []string
		var pods []*corev1.Pod
		for k := range l.count {
			p := n.manifest(l.manifest)
			p.Name = fmt.Sprintf("%s-%d-%d", l.manifest, i, k)
			names, pods = append(names, p.Name), append(pods, p)
		}
		began := time.Now()
		for _, p := range pods {
			n.put(p)
		}
		for n.waiting(names) {
			if time.Since(began) > times(2*time.Minute) {
				n.t.Fatalf("%s: not Ready in %s", l.what, time.Since(began))
			}
			time.Sleep(10 * time.Millisecond)
		}
		all = append(all, time.Since(began))
		n.take(names...)
	}
	return all
}

// waiting reports whether one of the pods is not Ready.
func (n *node) waiting(names []string) bool {
	ready := 0
	for _, p := range n.list() {
		if slices.Contains(names, plain(&p)) && facts(&p)["ready"] == "True" {
			ready++
		}
	}
	return ready < len(names)
}
