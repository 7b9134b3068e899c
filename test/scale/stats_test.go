package scale

import (
	"context"
	"regexp"
	"slices"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

var davitd = regexp.MustCompile("^davitd$")

// TestStatsAreQuick: figures of 100 containers, at the median of many calls.
func TestStatsAreQuick(t *testing.T) {
	testkit.Root(t)
	testkit.Leftovers(t)
	image := testkit.NewRegistry(t).PushBusybox(t, "scale/busybox:1")
	d := testkit.NewDaemon(t, "")
	c := d.Client(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if _, err := c.Pull(ctx, image); err != nil {
		t.Fatal(err)
	}
	ids, _ := startPods(ctx, t, d, c, image, 100)
	calls := map[string]func() (int, error){
		"ListContainerStats": func() (int, error) {
			r, err := c.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			return len(r.GetStats()), err
		},
		"ListPodSandboxStats": func() (int, error) {
			r, err := c.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			return len(r.GetStats()), err
		},
		"ListContainers": func() (int, error) {
			r, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			return len(r.GetContainers()), err
		},
		"ListPodSandboxMetrics": func() (int, error) {
			r, err := c.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
			return len(r.GetPodMetrics()), err
		},
	}
	for name, call := range calls {
		var took []time.Duration
		cpu := testkit.CPUOf(davitd)
		for range 40 {
			begun := time.Now()
			n, err := call()
			took = append(took, time.Since(begun))
			if err != nil || n != len(ids) {
				t.Errorf("%s: %d, %v", name, n, err)
				break
			}
		}
		slices.Sort(took)
		t.Logf("figure: %s of 100: %s at the least, %s at the median, %s at the most; %s of CPU", name,
			took[0].Round(10*time.Microsecond), took[len(took)/2].Round(10*time.Microsecond), took[len(took)-1].Round(time.Millisecond),
			((testkit.CPUOf(davitd)-cpu)/time.Duration(len(took))).Round(10*time.Microsecond))
	}
	removePods(ctx, t, c, ids)
}
