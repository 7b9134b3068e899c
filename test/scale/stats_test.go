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

// statsBound is for the figures of 100 containers, at the quickest of some
// calls: the aim is 20 ms; what is allowed leaves room for a machine under load.
const statsBound = 40 * time.Millisecond

// checkStats asks for the figures of all pods, and how long that takes.
func checkStats(ctx context.Context, t *testing.T, c *testkit.Client, pods int) {
	t.Helper()
	for _, call := range []struct {
		name  string
		bound time.Duration
		do    func() (int, error)
	}{
		{"ListContainerStats", statsBound, func() (int, error) {
			r, err := c.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			return len(r.GetStats()), err
		}},
		{"ListPodSandboxStats", 2 * statsBound, func() (int, error) {
			r, err := c.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			return len(r.GetStats()), err
		}},
		{"ListPodSandboxMetrics", 10 * statsBound, func() (int, error) {
			r, err := c.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
			return len(r.GetPodMetrics()), err
		}},
	} {
		var took []time.Duration
		cpu := testkit.CPUOf(davitd)
		for range 20 {
			begun := time.Now()
			n, err := call.do()
			took = append(took, time.Since(begun)*100/time.Duration(pods))
			if err != nil || n != pods {
				t.Errorf("%s: %d of %d, %v", call.name, n, pods, err)
				return
			}
		}
		slices.Sort(took)
		cpu = (testkit.CPUOf(davitd) - cpu) * 100 / time.Duration(pods*len(took))
		t.Logf("figure: %s of 100: %s at the least, %s at the median, %s at the most; %s of CPU", call.name,
			took[0].Round(10*time.Microsecond), took[len(took)/2].Round(10*time.Microsecond), took[len(took)-1].Round(time.Millisecond),
			cpu.Round(10*time.Microsecond))
		if took[0] > call.bound {
			t.Errorf("%s of 100 takes %s at the least, want %s at most", call.name, took[0], call.bound)
		}
	}
}
