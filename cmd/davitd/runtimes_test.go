package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/davit-runtime/davit/internal/cri/validate"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/ociruntime"
	"github.com/davit-runtime/davit/internal/ocispec"
)

func TestMissingRuntime(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "crun")
	c := &config{Root: dir, State: "/s", DefaultRuntime: "fast", Runtimes: map[string]runtimeConfig{"fast": {Path: path}}}
	r := newRuntimes(c, true, quiet)
	if err := r.ready(); err == nil || !strings.Contains(err.Error(), path) && !strings.Contains(err.Error(), "fast") {
		t.Errorf("ready: %v", err)
	}
	if _, err := r.Runtime(""); !fault.Is(err, fault.Unavailable) {
		t.Errorf("the missing one: %v", err)
	}
	if _, err := r.Runtime("kata"); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "fast") {
		t.Errorf("an unknown one: %v", err)
	}
	// It is installed while davitd runs.
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho crun version 9\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := r.ready(); err != nil {
		t.Errorf("once it is there: %v", err)
	}
	got, err := r.Runtime("")
	want := ociruntime.Runtime{Handler: "fast", Path: path, Root: "/s/oci/fast", SystemdCgroup: true}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	r.probe(context.Background())
	if f, ok := r.known(path); !ok || f.Version != "crun version 9" {
		t.Errorf("features %+v", f)
	}
	var found bool
	for _, h := range r.handlers() {
		found = found || h == validate.Handler{Name: "fast", Default: true}
		if h.Default != (h.Name == "fast") {
			t.Errorf("handler %+v", h)
		}
	}
	if !found {
		t.Errorf("handlers %v", r.handlers())
	}
}

type fakeCompiler struct {
	runs int
	err  error
}

func (f *fakeCompiler) Seccomp(context.Context, ociruntime.Runtime, *specs.LinuxSeccomp) ([]byte, error) {
	f.runs++
	return []byte("8 bytes!"), f.err
}

func TestSeccompCache(t *testing.T) {
	host, err := ocispec.ProbeHost()
	if err != nil {
		t.Fatal(err)
	}
	c := &config{Root: t.TempDir(), State: "/s"}
	crun := ociruntime.Runtime{Handler: "crun", Path: "/usr/bin/crun"}
	version := ociruntime.Features{Version: "crun version 1.8.1"}
	profiles := usualProfiles(host.Capabilities)
	if len(profiles) != 2 {
		t.Fatalf("%d profiles", len(profiles))
	}
	var f fakeCompiler
	fill := func(r ociruntime.Runtime, v ociruntime.Features) *runtimes {
		all := newRuntimes(c, false, quiet)
		all.bpf.fill(context.Background(), &f, r, v, host.Capabilities)
		return all
	}
	r := fill(crun, version)
	if got := r.Seccomp(crun, profiles[0])["run.oci.seccomp_bpf_data"]; got != "OCBieXRlcyE=" || f.runs != 2 {
		t.Errorf("%q after %d runs", got, f.runs)
	}
	if got := r.Seccomp(ociruntime.Runtime{Path: "/usr/sbin/runc"}, profiles[0]); got != nil {
		t.Errorf("for another runtime: %v", got)
	}
	synctest.Test(t, func(t *testing.T) { // a profile of a container's own
		all := newRuntimes(c, false, quiet)
		var f fakeCompiler
		all.bpf.fill(t.Context(), &f, crun, version, host.Capabilities)
		ctx, stop := context.WithCancel(t.Context())
		go all.bpf.serve(ctx, &f, nil)
		own := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
		if got := all.Seccomp(crun, own); got != nil {
			t.Errorf("the first time: %v", got)
		}
		all.Seccomp(crun, own)
		synctest.Wait()
		if got := all.Seccomp(crun, own); got == nil || f.runs != 1 {
			t.Errorf("the next time: %v, %d runs", got, f.runs)
		}
		stop()
	})
	if fill(crun, version); f.runs != 2 {
		t.Errorf("compiled again: %d runs", f.runs)
	}
	if fill(crun, ociruntime.Features{Version: "crun version 1.9"}); f.runs != 4 {
		t.Errorf("another version: %d runs", f.runs)
	}
	if dirs, _ := filepath.Glob(filepath.Join(c.Root, "seccomp", "*")); len(dirs) != 1 {
		t.Errorf("left of other versions: %v", dirs)
	}
	if fill(ociruntime.Runtime{Handler: "runc", Path: "/usr/sbin/runc"}, ociruntime.Features{Version: "runc version 1.1.5"}); f.runs != 4 {
		t.Error("runc was asked")
	}
	f.err = errors.New("no")
	if r := fill(crun, version); r.Seccomp(crun, profiles[0]) != nil {
		t.Error("a filter that failed")
	}
}
