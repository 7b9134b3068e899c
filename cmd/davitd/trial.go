package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/holder"
	"github.com/davit-runtime/davit/internal/idmap"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/namespace"
	"github.com/davit-runtime/davit/internal/ociruntime"
	"github.com/davit-runtime/davit/internal/ocispec"
	"github.com/davit-runtime/davit/internal/operation"
	"github.com/davit-runtime/davit/internal/store"
)

// A trialResult is what an OCI runtime was found to be able to do, on this
// kernel, on the file systems of davit's directories.
type trialResult struct {
	ReadOnly         bool // mounts that are read-only with all below
	Users            bool // containers in a pod's user namespace
	HostNetworkUsers bool // also on the host's network
}

// trials find out by doing what cannot be known otherwise. A container is made
// as any other, but never started. What worked is remembered for this kernel
// and this version of the OCI runtime. What failed without anybody saying that
// it cannot be done is tried again: a disk that was full may have room by then.
type trials struct {
	config  *config
	parts   *parts
	log     *slog.Logger
	crew    *operation.Crew // tries, until it is dismissed
	attempt func(ctx context.Context, of ociruntime.Runtime, can *trialResult) error
}

const (
	trialVersion = 1
	// trialTime is how long one attempt may take; some 100 ms is usual.
	trialTime = 20 * time.Second
	// trialCleanTime is how long cleaning up after one may take. What is left
	// is in the way of the next attempt, or of the next davitd, which go on with it.
	trialCleanTime = 10 * time.Second
	// trialPatience is how long callers wait for a first attempt, from its beginning.
	trialPatience   = 5 * time.Second
	trialRetryFirst = 2 * time.Second
	trialRetryMost  = 10 * time.Minute
	// trialUsers is the first ID on the host of those that trials map to. No
	// file of theirs is left.
	trialUsers = 1 << 20
)

func newTrials(ctx context.Context, c *config, p *parts, log *slog.Logger) *trials {
	t := &trials{config: c, parts: p, log: log, crew: operation.NewCrew(ctx, log)}
	t.attempt = t.all
	return t
}

// A trial is what has been proven of one OCI runtime by now.
type trial struct {
	of       ociruntime.Runtime
	features func(context.Context) (ociruntime.Features, error)

	begun time.Time
	first chan struct{} // closed once the first attempt is over
	can   atomic.Pointer[trialResult]
}

// result waits for the first attempt, at most until trialPatience is over. What
// is not proven by then does not count as possible.
func (t *trial) result() trialResult {
	over := time.NewTimer(time.Until(t.begun.Add(trialPatience)))
	defer over.Stop()
	select {
	case <-t.first:
	case <-over.C:
	}
	return *t.can.Load()
}

// begin starts a trial, or remembers its result.
func (t *trials) begin(of ociruntime.Runtime, features func(context.Context) (ociruntime.Features, error)) *trial {
	tried := &trial{of: of, features: features, begun: time.Now(), first: make(chan struct{})}
	tried.can.Store(&trialResult{})
	if !t.crew.Start(func(ctx context.Context) { t.run(ctx, tried) }) {
		close(tried.first)
	}
	return tried
}

// run tries until it is known what the runtime can do and what it cannot.
func (t *trials) run(ctx context.Context, tried *trial) {
	said := ""
	for wait := trialRetryFirst; ; wait = min(2*wait, trialRetryMost) {
		err := t.once(ctx, tried)
		if wait == trialRetryFirst {
			close(tried.first)
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		proven := fault.Is(err, fault.Unimplemented)
		if text := err.Error(); text != said {
			t.log.Info("an OCI runtime cannot do everything here", "handler", tried.of.Handler, "reason", text, "tried_again", !proven)
			said = text
		}
		if proven {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// once adds what one attempt proves to what has been proven. An error is
// Unimplemented if the kernel or the runtime says that it cannot do the rest.
func (t *trials) once(ctx context.Context, tried *trial) error {
	ctx, cancel := context.WithTimeout(ctx, trialTime)
	defer cancel()
	f, err := tried.features(ctx)
	if err != nil {
		return err
	}
	file := filepath.Join(t.config.Root, "trials", generation(tried.of, f)+".json")
	can := *tried.can.Load()
	if err := store.LoadJSON(file, trialVersion, &can); err == nil {
		tried.can.Store(&can)
		return nil
	}
	err = t.attempt(ctx, tried.of, &can)
	tried.can.Store(&can)
	if err != nil {
		return err
	}
	if err = os.MkdirAll(filepath.Dir(file), 0o700); err == nil {
		err = store.SaveJSON(file, trialVersion, can)
	}
	if err != nil {
		t.log.Warn("what was tried is not remembered", "error", err)
	}
	return nil
}

// all tries one thing after the other of what has not worked yet, until one
// does not work.
func (t *trials) all(ctx context.Context, of ociruntime.Runtime, can *trialResult) error {
	if !can.ReadOnly {
		if err := (idmap.Tree{Source: t.config.State, ReadOnly: true}).Try(); err != nil {
			return fmt.Errorf("recursive read-only mounts: %w", err)
		}
		can.ReadOnly = true
	}
	if err := passable(t.config.State); err != nil {
		return fmt.Errorf("user namespaces: %w", err)
	}
	if !can.Users {
		if err := t.users(ctx, of, false); err != nil {
			return fmt.Errorf("user namespaces: %w", err)
		}
		can.Users = true
	}
	if err := t.users(ctx, of, true); err != nil {
		return fmt.Errorf("user namespaces on the host's network: %w", err)
	}
	can.HostNetworkUsers = true
	return nil
}

// passable requires that other users can reach what is in a directory.
func passable(dir string) error {
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode()&0o001 == 0 {
			return fmt.Errorf("directory %s (mode %#o) is closed to other users, so to the root of a user namespace: chmod o+x", dir, info.Mode().Perm())
		}
		if dir == "/" {
			return nil
		}
	}
}

// users makes a container in a user namespace.
func (t *trials) users(ctx context.Context, of ociruntime.Runtime, hostNetwork bool) error {
	// The directory comes first and goes last, so that what is left is found.
	id := t.id(of)
	if _, err := os.Lstat(t.dir(id)); err == nil {
		if err := t.clean(ctx, id); err != nil {
			return fmt.Errorf("remove what is left of the last trial: %w", err)
		}
	}
	err := t.create(ctx, of, id, hostNetwork)
	left := t.clean(context.WithoutCancel(ctx), id)
	if err == nil {
		return left
	}
	return err
}

// sweep cleans up after trials that a crash cut short. It must be over before
// pods are recovered, which would take what is left for a container without a
// record, and remove it while the next trial makes it anew.
func (t *trials) sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, trialCleanTime)
	defer cancel()
	left, _ := os.ReadDir(filepath.Join(t.config.State, "trials")) // none: no trial was cut short
	for _, e := range left {
		if err := t.clean(ctx, e.Name()); err != nil {
			t.log.Warn("what is left of a trial cannot be removed", "id", e.Name(), "error", err)
		}
	}
}

// id is 64 hexadecimal digits, as every container's; others running on this
// host have others.
func (t *trials) id(of ociruntime.Runtime) string {
	sum := sha256.Sum256([]byte("trial " + t.config.State + " " + of.Handler))
	return hex.EncodeToString(sum[:])
}

func (t *trials) dir(id string) string { return filepath.Join(t.config.State, "trials", id) }

func (t *trials) create(ctx context.Context, of ociruntime.Runtime, id string, hostNetwork bool) error {
	p, dir := t.parts, t.dir(id)
	ids := []idmap.Range{{Container: 0, Host: trialUsers, Length: 65536}}
	users := &idmap.Users{Map: idmap.Map{UIDs: ids, GIDs: ids}, Path: filepath.Join(dir, "user")}
	if err := namespace.New().Create(ctx, dir, namespace.Spec{
		Net: !hostNetwork, UTS: !hostNetwork, IPC: true, Users: users.Map,
	}); err != nil {
		return err
	}
	in := ocispec.Input{
		ID: id, Pod: &runtimeapi.PodSandboxConfig{}, Container: &runtimeapi.ContainerConfig{Command: []string{"/hold"}},
		CgroupV2: p.host.CgroupV2, Capabilities: p.host.Capabilities, MinOOMScoreAdj: p.host.MinOOMScoreAdj,
		Namespaces: ocispec.Namespaces{User: users.Path, Users: users.Map, IPC: filepath.Join(dir, "ipc")},
	}
	if hostNetwork {
		in.Files.Sys = filepath.Join(dir, "trees", "sys")
		if err := (idmap.Tree{Source: "/sys", ReadOnly: true}).Attach(in.Files.Sys); err != nil {
			return err
		}
	} else {
		in.Namespaces.Net, in.Namespaces.UTS = filepath.Join(dir, "net"), filepath.Join(dir, "uts")
	}
	var err error
	if in.Rootfs, err = p.images.MountEmpty(ctx, id, image.MountOptions{Users: users}); err != nil {
		return err
	}
	if err := writeProgram(filepath.Join(in.Rootfs, "hold")); err != nil {
		return err
	}
	if err := p.cgroups.Prepare(ctx, ""); err != nil {
		return err
	}
	in.CgroupsPath = p.cgroups.Place("", id).Path
	spec, err := ocispec.Make(in)
	if err != nil {
		return err
	}
	bundle, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := store.WriteFile(filepath.Join(dir, "config.json"), bundle, 0o600); err != nil {
		return err
	}
	p.cgroups.Expect()
	pid, err := p.monitor.Create(ctx, monitor.Container{ID: id, Runtime: of, Bundle: dir})
	if err != nil {
		return err
	}
	return checkMapped(pid, trialUsers)
}

// checkMapped requires that a process is in a user namespace whose root is uid.
func checkMapped(pid int, uid uint32) error {
	for _, file := range []string{"uid_map", "gid_map"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
		if err != nil {
			return err
		}
		if f := strings.Fields(string(text)); len(f) != 3 || f[1] != strconv.FormatUint(uint64(uid), 10) {
			return fmt.Errorf("the container's %s is %q", file, text)
		}
	}
	return nil
}

// writeProgram puts a program at a path, for an OCI runtime to find.
func writeProgram(path string) error {
	f, err := holder.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	program := make([]byte, 4096)
	n, err := unix.Pread(int(f.Fd()), program, 0)
	if err != nil {
		return err
	}
	return store.WriteFile(path, program[:n], 0o755)
}

// clean ends and removes all that create makes, or has made in part. What is
// left of it after an error, the next attempt or the next davitd removes.
func (t *trials) clean(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, trialCleanTime)
	defer cancel()
	p, dir := t.parts, t.dir(id)
	if err := p.monitor.Remove(ctx, id); err != nil {
		return err
	}
	if err := errors.Join(
		p.cgroups.Remove(ctx, p.cgroups.Place("", id)),
		p.images.Unmount(ctx, id),
		idmap.DetachAll(filepath.Join(dir, "trees")),
		namespace.New().Release(ctx, dir),
	); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}
