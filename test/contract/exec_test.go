package contract

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

// execGrace is how long after its limit ExecSync may answer. It is meant to be
// one second; the rest is for machines that are busy or emulated.
const execGrace = 5 * time.Second

// TestExecSync: output whole and unchanged, limits kept, errors by their kind.
func TestExecSync(t *testing.T) {
	w := shared(t)
	podID, pod := w.pod("exec")
	ctr := w.run(podID, pod, w.config("main", "sleep", "1000"))

	t.Run("code and streams", func(t *testing.T) {
		w := w.within(t)
		r, err := w.exec(ctr, 5, "sh", "-c", "echo out; echo err >&2; exit 42")
		if err != nil || r.ExitCode != 42 || string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" {
			t.Errorf("%v, %v", r, err)
		}
		if r, err = w.exec(ctr, 0, "sh", "-c", "kill -9 $$"); err != nil || r.ExitCode != 137 {
			t.Errorf("killed: %v, %v", r, err)
		}
	})
	t.Run("binary output", func(t *testing.T) {
		w := w.within(t)
		r, err := w.exec(ctr, 20, "sh", "-c", "dd if=/dev/urandom of=/tmp/r bs=64k count=32 2>/dev/null; cat /tmp/r")
		if err != nil || len(r.Stdout) != 2<<20 {
			t.Fatalf("%d bytes, %v", len(r.GetStdout()), err)
		}
		// The same file once more, by what the container itself makes of it.
		again, err := w.exec(ctr, 20, "cat", "/tmp/r")
		if err != nil || !bytes.Equal(r.Stdout, again.Stdout) {
			a, b := sha256.Sum256(r.Stdout), sha256.Sum256(again.GetStdout())
			t.Errorf("%s, then %s: %v", hex.EncodeToString(a[:4]), hex.EncodeToString(b[:4]), err)
		}
	})
	t.Run("too much output", func(t *testing.T) {
		w := w.within(t)
		begun := time.Now()
		r, err := w.exec(ctr, 60, "sh", "-c", "dd if=/dev/zero bs=1M count=40 2>/dev/null; dd if=/dev/zero bs=1M count=40 2>/dev/null >&2; exit 3")
		if err != nil || r.ExitCode != 3 || len(r.Stdout) < 7<<20 || len(r.Stdout)+len(r.Stderr) >= 16<<20 {
			t.Errorf("code %d, %d and %d bytes: %v", r.GetExitCode(), len(r.GetStdout()), len(r.GetStderr()), err)
		}
		t.Logf("80 MiB discarded in %v", time.Since(begun))
	})
	t.Run("limits", func(t *testing.T) {
		w := w.within(t)
		for name, command := range map[string]string{
			"timeout": "sleep 300", "children": "sleep 300 & sleep 300 & wait", "deaf": "trap '' TERM INT; while :; do sleep 1; done",
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w := w.within(t)
				begun := time.Now()
				r, err := w.exec(ctr, 1, "sh", "-c", command)
				if err == nil && r.ExitCode == 0 {
					t.Error("a command that was stopped has succeeded")
				}
				prefer(t, err, codes.DeadlineExceeded)
				if took := time.Since(begun); took < 900*time.Millisecond || took > time.Second+execGrace {
					t.Errorf("took %v", took)
				}
			})
		}
	})
	t.Run("child keeps stdout", func(t *testing.T) {
		const limit = 2 // seconds
		w := w.within(t)
		begun := time.Now()
		_, err := w.exec(ctr, limit, "sh", "-c", "echo first; sleep 300 &")
		took := time.Since(begun)
		t.Logf("%v after %v", err, took)
		prefer(t, err, codes.DeadlineExceeded, "holds its output open")
		if over := took - limit*time.Second; over > execGrace {
			t.Errorf("took %v", took)
		} else if over < 0 {
			differs(t, "output ended after %v", took)
		}
	})
	t.Run("nothing is left", func(t *testing.T) {
		w := w.within(t)
		for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			r, err := w.exec(ctr, 5, "ps")
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(r.Stdout, []byte("sleep 300")); n == 0 {
				return
			}
			if time.Now().After(deadline) {
				differs(t, "processes of execs remain:\n%s", r.Stdout)
				return
			}
		}
	})
	t.Run("no such command", func(t *testing.T) {
		w := w.within(t)
		for _, command := range []string{"nosuchprogram", "/no/such", "/etc/passwd", "/etc"} {
			_, err := w.exec(ctr, 5, command)
			want(t, err, codes.InvalidArgument)
		}
	})
	t.Run("bad requests", func(t *testing.T) {
		w := w.within(t)
		_, err := w.exec(ctr, 5)
		prefer(t, err, codes.InvalidArgument, "cmd")
		_, err = w.exec(ctr, -1, "true")
		prefer(t, err, codes.InvalidArgument, "timeout")
		_, err = w.exec("", 1, "true")
		want(t, err, codes.InvalidArgument, "container_id")
		_, err = w.exec("0000", 1, "true")
		want(t, err, codes.NotFound)
		if r, err := w.exec(ctr[:12], 5, "echo", "-n", ""); err != nil || len(r.Stdout) != 0 {
			differs(t, "by prefix: %v, %v", r, err)
		}
	})
	t.Run("container ends", func(t *testing.T) {
		w := w.within(t)
		errs := make(chan error, 1)
		go func() { _, err := w.exec(ctr, 30, "sleep", "300"); errs <- err }()
		time.Sleep(300 * time.Millisecond)
		if err := w.stop(ctr, 0); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-errs:
			t.Logf("exec in a container that is killed: %v", err)
		case <-time.After(5 * time.Second):
			t.Error("the exec outlives its container")
		}
		_, err := w.exec(ctr, 5, "true")
		want(t, err, codes.FailedPrecondition, ctr)
	})
}
