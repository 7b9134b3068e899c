package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/ociruntime"
	"github.com/davit-runtime/davit/internal/ocispec"
	"github.com/davit-runtime/davit/internal/store"
)

// A compiler turns a seccomp profile into the program that an OCI runtime
// makes of it. monitor.Client is one.
type compiler interface {
	Seccomp(ctx context.Context, r ociruntime.Runtime, profile *specs.LinuxSeccomp) ([]byte, error)
}

// A seccompCache keeps compiled filters for crun, which otherwise spends most
// of a container's creation on compiling the same profile once more. One file
// each, below a directory that is named by all that a program depends on.
type seccompCache struct {
	dir string // of all generations
	log *slog.Logger

	wanted chan wantedFilter // profiles that a container had and nobody compiled yet

	mu       sync.Mutex
	dirs     map[string]string // runtime's path → directory; only of runtimes that take programs
	programs map[string]string // runtime's path and profile's key → base64; empty while wanted
}

type wantedFilter struct {
	runtime ociruntime.Runtime
	profile *specs.LinuxSeccomp
}

// maxFilters bounds how many filters are kept, of 10 KB each. A profile that
// comes later is compiled at each create.
const maxFilters = 64

func newSeccompCache(root string, log *slog.Logger) *seccompCache {
	return &seccompCache{
		dir: filepath.Join(root, "seccomp"), log: log, wanted: make(chan wantedFilter, maxFilters),
		dirs: map[string]string{}, programs: map[string]string{},
	}
}

// get returns profile's filter, or "" and sees to it that the next container
// with that profile finds one. It never waits.
func (c *seccompCache) get(r ociruntime.Runtime, profile *specs.LinuxSeccomp) string {
	key := r.Path + " " + ocispec.SeccompKey(profile)
	c.mu.Lock()
	defer c.mu.Unlock()
	program, known := c.programs[key]
	if _, takes := c.dirs[r.Path]; takes && !known && len(c.programs) < maxFilters {
		c.programs[key] = ""
		c.wanted <- wantedFilter{r, profile} // has room: each profile comes once
	}
	return program
}

// serve compiles what get did not find, one after the other, until ctx ends or enough is told.
func (c *seccompCache) serve(ctx context.Context, with compiler, enough <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-enough:
			return
		case w := <-c.wanted:
			if err := c.add(ctx, with, w.runtime, w.profile); err != nil && ctx.Err() == nil {
				c.log.Debug("a seccomp filter is compiled at each create", "runtime", w.runtime.Handler, "reason", err)
			}
		}
	}
}

// fill loads, or compiles, the filters of the usual containers for r. Without
// them containers are created as well, only slower.
func (c *seccompCache) fill(ctx context.Context, with compiler, r ociruntime.Runtime, f ociruntime.Features, caps []string) {
	if !strings.HasPrefix(f.Version, "crun") {
		return // only crun takes ready programs
	}
	dir := filepath.Join(c.dir, generation(r, f))
	c.forget(dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.log.Warn("seccomp filters are not kept", "error", err)
		return
	}
	c.mu.Lock()
	c.dirs[r.Path] = dir
	c.mu.Unlock()
	for _, profile := range usualProfiles(caps) {
		err := c.add(ctx, with, r, profile)
		if fault.Is(err, fault.Unimplemented) {
			c.log.Debug("seccomp filters are compiled at each create", "runtime", r.Handler, "reason", err)
			return
		}
		if err != nil {
			if ctx.Err() == nil {
				c.log.Warn("seccomp filter was not compiled ahead", "runtime", r.Handler, "error", err)
			}
			return
		}
	}
	c.log.Debug("seccomp filters are ready", "runtime", r.Handler)
}

func (c *seccompCache) add(ctx context.Context, with compiler, r ociruntime.Runtime, profile *specs.LinuxSeccomp) error {
	key := ocispec.SeccompKey(profile)
	c.mu.Lock()
	dir := c.dirs[r.Path]
	c.mu.Unlock()
	program, err := c.one(ctx, with, r, profile, filepath.Join(dir, key+".bpf"))
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.programs[r.Path+" "+key] = base64.StdEncoding.EncodeToString(program)
	return nil
}

func (c *seccompCache) one(ctx context.Context, with compiler, r ociruntime.Runtime, profile *specs.LinuxSeccomp, path string) ([]byte, error) {
	// kernel: linux/filter.h, an instruction has 8 bytes, a program at most 4096 of them.
	if program, err := os.ReadFile(path); err == nil && len(program) > 0 && len(program)%8 == 0 {
		return program, nil
	}
	program, err := with.Seccomp(ctx, r, profile)
	if err != nil {
		return nil, err
	}
	if len(program) == 0 || len(program)%8 != 0 {
		return nil, fmt.Errorf("%s made a filter of %d bytes", r.Path, len(program))
	}
	// Durable: half a filter would be found by the next boot.
	return program, store.WriteFileDurable(path, program, 0o600)
}

// forget deletes what other versions of this runtime left.
func (c *seccompCache) forget(keep string) {
	prefix, _, _ := strings.Cut(filepath.Base(keep), "-")
	others, _ := filepath.Glob(filepath.Join(c.dir, prefix+"-*"))
	for _, dir := range others {
		if dir != keep {
			_ = os.RemoveAll(dir)
		}
	}
}

// generation names what a program depends on beside its profile: runtime and
// its version, kernel, architecture. It begins with the handler.
func generation(r ociruntime.Runtime, f ociruntime.Features) string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	sum := sha256.Sum256([]byte(strings.Join([]string{
		r.Path, f.Version, unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]), runtime.GOARCH,
	}, "\n")))
	return strings.ReplaceAll(r.Handler, "-", "_") + "-" + hex.EncodeToString(sum[:8])
}

// usualProfiles are the default profile for the capabilities that most
// containers have, on which it depends: the default ones, and none, or none
// but binding low ports, as the restricted Pod Security Standard wants.
func usualProfiles(caps []string) []*specs.LinuxSeccomp {
	var all []*specs.LinuxSeccomp
	for _, c := range []*runtimeapi.Capability{
		nil,
		{DropCapabilities: []string{"ALL"}},
	} {
		s, err := ocispec.Build(ocispec.Input{
			Rootfs: "/", Capabilities: caps, Pod: &runtimeapi.PodSandboxConfig{},
			Container: &runtimeapi.ContainerConfig{
				Command: []string{"/"},
				Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					Capabilities: c,
					Seccomp:      &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				}},
			},
		})
		if err == nil && s.Linux.Seccomp != nil {
			all = append(all, s.Linux.Seccomp)
		}
	}
	return all
}
