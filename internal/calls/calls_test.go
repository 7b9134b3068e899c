package calls

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/span"
)

func pod(name string) Subject { return Subject{Namespace: "ns", Pod: name} }

func call(c *Calls, method string, s Subject, took time.Duration, text string) {
	ctx, t := span.Begin(context.Background())
	r := c.Begin(method, s, t)
	end := span.Step(ctx, "network")
	time.Sleep(took)
	var err error
	if text != "" {
		err = fault.Ran(errors.New(text), []string{"/opt/cni/bin/bridge"}, []byte("the cause"))
	}
	end(err)
	r.End(s, "Unavailable", text)
}

func TestWhatIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New()
		call(c, "RunPodSandbox", pod("quick"), 10*time.Millisecond, "")
		call(c, "RunPodSandbox", pod("slow"), 2*time.Second, "")
		call(c, "RunPodSandbox", pod("bad"), time.Millisecond, "first")
		call(c, "RunPodSandbox", pod("bad"), time.Millisecond, "second")
		call(c, "RunPodSandbox", pod("bad"), time.Second, "") // slow is another matter
		call(c, "StopPodSandbox", pod("bad"), 0, "third")
		all := c.Of("", "")
		var got []string
		for _, k := range all {
			got = append(got, fmt.Sprintf("%s %s %q x%d", k.Method, k.Subject.Pod, k.Err, k.Times))
		}
		want := []string{
			`StopPodSandbox bad "third" x1`, `RunPodSandbox bad "" x1`, `RunPodSandbox bad "second" x2`, `RunPodSandbox slow "" x1`,
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("remembered\n%s", strings.Join(got, "\n"))
		}
		if all[2].Succeeded.IsZero() || !all[0].Succeeded.IsZero() || all[2].First.Equal(all[2].Began) {
			t.Errorf("times: %+v %+v", all[0], all[2])
		}
		if s := all[2].Steps[0]; !s.Failed || s.Command != "/opt/cni/bin/bridge" || s.Said != "the cause" || s.Took != time.Millisecond {
			t.Errorf("step %+v", s)
		}
		if s := all[3].Steps[0]; s.Failed || s.Took != 2*time.Second {
			t.Errorf("step %+v", s)
		}
	})
}

// A call that is under way is told, and an operation that goes on after its
// caller has gone.
func TestUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New()
		ctx, trace := span.Begin(context.Background())
		r := c.Begin("RunPodSandbox", pod("web"), trace)
		end := span.Step(ctx, "network")
		time.Sleep(time.Minute)
		all := c.Of("web", "")
		if len(all) != 1 || all[0].Took != 0 || all[0].Steps[0].Took != 0 {
			t.Errorf("%+v", all)
		}
		r.End(pod("web"), "Unavailable", "still under way")
		time.Sleep(time.Minute)
		end()
		if all = c.Of("web", ""); len(all) != 1 || all[0].Took != time.Minute || all[0].Steps[0].Took != 2*time.Minute {
			t.Errorf("%+v", all)
		}
	})
}

func TestOf(t *testing.T) {
	c := New()
	for _, s := range []Subject{
		{Namespace: "a", Pod: "web", PodID: "0123456789"},
		{Namespace: "b", Pod: "web", PodID: "abcdef0123", Container: "app", ContainerID: "fedcba"},
		{Image: "reg/app:1"},
	} {
		call(c, "PullImage", s, 0, "bad")
	}
	for ref, want := range map[[2]string]int{
		{"", ""}: 3, {"web", ""}: 2, {"a/web", ""}: 1, {"012", ""}: 1, {"01", ""}: 0, {"fed", ""}: 1, {"app", ""}: 1,
		{"reg/app:1", ""}: 1, {"web", "app"}: 1, {"web", "other"}: 0, {"a/other", ""}: 0, {"/", ""}: 0,
	} {
		if got := c.Of(ref[0], ref[1]); len(got) != want {
			t.Errorf("%q: %d calls, want %d", ref, len(got), want)
		}
	}
}

// 20,000 pods that each fail at length take no more memory than the last of them.
func TestBounded(t *testing.T) {
	c := New()
	said := []byte(strings.Repeat("said ", 10_000))
	for i := range 20_000 {
		ctx, trace := span.Begin(context.Background())
		s := pod(fmt.Sprint("pod-", i))
		r := c.Begin("RunPodSandbox", s, trace)
		span.Step(ctx, "network")(fault.Ran(errors.New(fmt.Sprint("bad ", i)), []string{"/opt/cni/bin/bridge"}, said))
		for range 100 * (i / 19_000) { // of those that stay
			span.Step(ctx, "network")()
		}
		r.End(s, "Unavailable", strings.Repeat("x", 10_000))
	}
	if n := len(c.Of("", "")); n != maxKept || len(c.ended) != maxKept {
		t.Errorf("%d calls, %d keys", n, len(c.ended))
	}
	if got := c.Of("", "")[0]; got.Subject.Pod != "pod-19999" || len(got.Err) > maxError {
		t.Errorf("the newest is %s with %d bytes", got.Subject.Pod, len(got.Err))
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > 16<<20 {
		t.Errorf("%d MiB in use", m.HeapAlloc>>20)
	}
	t.Logf("%d KiB in use", m.HeapAlloc>>10)
	runtime.KeepAlive(c)
}
