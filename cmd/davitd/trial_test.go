package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/cri/validate"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/idmap"
	"github.com/davit-runtime/davit/internal/namespace"
	"github.com/davit-runtime/davit/internal/ociruntime"
	"github.com/davit-runtime/davit/internal/testkit"
)

// What a trial had made when davitd was killed is gone before davitd serves again.
func TestTrialCutShort(t *testing.T) {
	testkit.Root(t)
	testkit.Leftovers(t)
	d := testkit.NewDaemon(t, "")
	d.Kill()
	dir := filepath.Join(d.State, "trials", strings.Repeat("ab", 32))
	if err := namespace.New().Create(soon(t), dir, namespace.Spec{Net: true, IPC: true}); err != nil {
		t.Fatal(err)
	}
	if err := (idmap.Tree{Source: "/sys", ReadOnly: true}).Attach(filepath.Join(dir, "trees", "sys")); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v\n%s", dir, err, d.Log())
	}
}

// What nobody said to be impossible is tried again; until it has worked, it is
// not claimed. Who asks too early waits for the first attempt.
func TestTrialAgain(t *testing.T) {
	for _, test := range []struct {
		name  string
		errs  []error // of one attempt after the other; then it works
		after time.Duration
		tries int
		works bool
	}{
		{"works at once", nil, 0, 1, true},
		{"disk full", []error{unix.ENOSPC}, 2 * time.Second, 2, true},
		{"hangs, then an error of no kind", []error{context.DeadlineExceeded, errors.New("huh")}, 6 * time.Second, 3, true},
		{"kernel cannot", []error{fault.New(fault.Unimplemented, "", "no")}, time.Hour, 1, false},
		{"kernel cannot once there is room", []error{unix.ENOSPC, fault.New(fault.Unimplemented, "", "no")}, time.Hour, 2, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir, tries := t.TempDir(), 0
				path := filepath.Join(dir, "crun")
				r := newRuntimes(&config{Root: dir, State: dir, DefaultRuntime: "fast", Runtimes: map[string]runtimeConfig{"fast": {Path: path}}}, false, quiet)
				r.features[path] = ociruntime.Features{Version: "crun 1"}
				if err := os.WriteFile(path, nil, 0o755); err != nil {
					t.Fatal(err)
				}
				r.trials = newTrials(t.Context(), r.config.Load(), nil, quiet)
				r.trials.attempt = func(_ context.Context, of ociruntime.Runtime, can *trialResult) error {
					if of.Handler != "fast" {
						return fault.New(fault.Unimplemented, "", "not of interest")
					}
					tries++
					time.Sleep(time.Second)
					can.ReadOnly = true
					if tries <= len(test.errs) {
						return test.errs[tries-1]
					}
					can.Users = true
					return nil
				}
				ctx, stop := context.WithCancel(t.Context())
				go r.warm(ctx)
				fast := func() validate.Handler {
					all := r.handlers()
					return all[slices.IndexFunc(all, func(h validate.Handler) bool { return h.Name == "fast" })]
				}
				if h := fast(); !h.RecursiveReadOnly || h.UserNamespaces != (test.errs == nil) {
					t.Errorf("first: %+v", h)
				}
				time.Sleep(test.after + time.Duration(len(test.errs)+1)*time.Second)
				synctest.Wait()
				if h := fast(); h.UserNamespaces != test.works || tries != test.tries {
					t.Errorf("at last: %+v after %d attempts", h, tries)
				}
				stop()
			})
		})
	}
}

// An OCI runtime that hangs does not hold up Status; nothing is claimed of it.
func TestTrialHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trials := newTrials(t.Context(), &config{Root: t.TempDir()}, nil, quiet)
		trials.attempt = func(ctx context.Context, _ ociruntime.Runtime, _ *trialResult) error {
			<-ctx.Done()
			return ctx.Err()
		}
		known := func(context.Context) (ociruntime.Features, error) { return ociruntime.Features{Version: "1"}, nil }
		tried := trials.begin(ociruntime.Runtime{Handler: "slow", Path: "/slow"}, known)
		for range 3 {
			if can := tried.result(); can != (trialResult{}) {
				t.Errorf("%+v", can)
			}
		}
		if waited := time.Since(tried.begun); waited != trialPatience {
			t.Errorf("waited %v, all calls together", waited)
		}
		trials.crew.Dismiss()
	})
}

// Trials are done before anybody asks, and what a full disk kept from working
// works later without a restart.
func TestTrialsWarm(t *testing.T) {
	testkit.Root(t)
	testkit.Leftovers(t)
	dir := t.TempDir()
	full, crun := filepath.Join(dir, "full"), filepath.Join(dir, "crun")
	script := "#!/bin/sh\nif [ -e " + full + " ]; then case \"$*\" in *create*) echo 'no space left on device' >&2; exit 1;; esac; fi\nexec crun \"$@\"\n"
	if err := os.WriteFile(crun, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(full, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	d := testkit.NewDaemon(t, "[runtimes.own]\npath = \""+crun+"\"\n")
	c := d.Client(t)
	users := func(handler string) bool {
		status, err := c.RuntimeServiceClient.Status(soon(t), &runtimeapi.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range status.RuntimeHandlers {
			if h.Name == handler {
				return h.Features.UserNamespaces
			}
		}
		t.Fatalf("no handler %s", handler)
		return false
	}
	remembered := func(handler string) bool {
		found, _ := filepath.Glob(filepath.Join(d.Root, "trials", handler+"-*.json"))
		return len(found) == 1
	}
	wait := func(what string, f func() bool) {
		for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: not within 30 s", what)
			}
		}
	}
	wait("a trial that nobody asked for", func() bool { return remembered("crun") })
	if !users("crun") || users("own") {
		t.Errorf("crun %v, own %v", users("crun"), users("own"))
	}
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	wait("there is room again", func() bool { return users("own") })
}
