// Package kubelet holds davit to what real kubelets ask of a runtime: the
// newest one, and 1.22, which speaks only v1alpha2. They are built, as
// released, from the modules in v1.37 and v1.22 (make e2e-kubelet), and run
// standalone with static pods, beside a runtime, in private namespaces.
//
//	make e2e-kubelet                                       all of it
//	make e2e-kubelet KUBELETFLAGS='-test.run TestPods/1.37'  some
//	make e2e-kubelet ENDPOINT=unix:///run/other.sock       the same pods on another runtime
//
// Without built kubelets (flag -kubelets) everything is skipped.
package kubelet

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/davit-runtime/davit/internal/testkit"
)

var (
	kubelets   = flag.String("kubelets", "", "`directory` of kubelets: v1.37.1/kubelet and so on")
	previous   = flag.String("previous", "", "`directory` of the programs that are upgraded from")
	endpoint   = flag.String("endpoint", "", "a runtime's CRI `socket`, unix:///…, instead of a davitd of the test's own")
	configured = flag.String("config", "", "more of davitd's configuration: `TOML` without tables")
	only       = flag.String("pods", "", "`names` of pods of testdata, with commas between; the others are left out")
	batch      = flag.Int("batch", 100, "how many `pods` at once")
	slow       = flag.Float64("slow", 1, "`factor` by which this machine is slower than two cores of the usual kind")
)

const (
	newest = "1.37.1"
	oldest = "1.22.17"
)

func TestMain(m *testing.M) {
	if kubelet := os.Getenv(wrapped); kubelet != "" {
		fmt.Fprintln(os.Stderr, "kubelet:", becomeKubelet(kubelet, os.Args[1:]))
		os.Exit(1)
	}
	flag.Parse()
	secure.Timeout = times(secure.Timeout)
	if *endpoint != "" {
		join(*endpoint)
		os.Exit(m.Run())
	}
	testkit.Main(m)
}

// kubeletOf returns a built kubelet's program, or skips the test.
func kubeletOf(t *testing.T, version string) string {
	t.Helper()
	if *kubelets == "" {
		t.Skip("needs built kubelets: make e2e-kubelet")
	}
	if *endpoint == "" {
		testkit.Root(t)
	}
	program, err := filepath.Abs(filepath.Join(*kubelets, "v"+version, "kubelet"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatal(err)
	}
	return program
}

// minorOf returns the 37 of "1.37.1".
func minorOf(version string) int {
	var major, minor int
	if _, err := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d", &major, &minor); err != nil {
		panic(version + " is not a version")
	}
	return minor
}

// times stretches a duration as much as this machine is slow.
func times(d time.Duration) time.Duration { return time.Duration(float64(d) * *slow) }

// eventually repeats check until it returns nil, and fails the test with its
// last error when the time is up.
func eventually(t testing.TB, limit time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(times(limit))
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", times(limit), err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
