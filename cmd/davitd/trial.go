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
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/holder"
	"github.com/davit-runtime/davit/internal/idmap"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/namespace"
	"github.com/davit-runtime/davit/internal/ociruntime"
	"github.com/davit-runtime/davit/internal/ocispec"
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
// and this version of the OCI runtime; what did not is tried anew by the next
// davitd.
type trials struct {
	config *config
	parts  *parts
	log    *slog.Logger
}

const (
	trialVersion = 1
	// trialTime is how long one trial may take; some 100 ms is usual.
	trialTime = 20 * time.Second
	// trialUsers is the first ID on the host of those that trials map to. No
	// file of theirs is left.
	trialUsers = 1 << 20
)

// of tries one OCI runtime, or remembers what it could do.
func (t *trials) of(of ociruntime.Runtime, f ociruntime.Features) trialResult {
	file := filepath.Join(t.config.Root, "trials", generation(of, f)+".json")
	var result trialResult
	if err := store.LoadJSON(file, trialVersion, &result); err == nil {
		return result
	}
	ctx, cancel := context.WithTimeout(context.Background(), trialTime)
	defer cancel()
	failed := t.all(ctx, of, &result)
	if failed != nil {
		t.log.Info("an OCI runtime cannot do everything here", "handler", of.Handler, "reason", failed)
		return result
	}
	err := os.MkdirAll(filepath.Dir(file), 0o700)
	if err == nil {
		err = store.SaveJSON(file, trialVersion, result)
	}
	if err != nil {
		t.log.Warn("what was tried is not remembered", "error", err)
	}
	return result
}

// all tries one thing after the other, until one does not work.
func (t *trials) all(ctx context.Context, of ociruntime.Runtime, result *trialResult) error {
	if err := (idmap.Tree{Source: t.config.State, ReadOnly: true}).Try(); err != nil {
		return fmt.Errorf("recursive read-only mounts: %w", err)
	}
	result.ReadOnly = true
	if err := passable(t.config.State); err != nil {
		return fmt.Errorf("user namespaces: %w", err)
	}
	if err := t.users(ctx, of, false); err != nil {
		return fmt.Errorf("user namespaces: %w", err)
	}
	result.Users = true
	if err := t.users(ctx, of, true); err != nil {
		return fmt.Errorf("user namespaces on the host's network: %w", err)
	}
	result.HostNetworkUsers = true
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
	// The directory comes first and goes last, so that sweep finds it.
	id := t.id(of)
	err := t.create(ctx, of, id, hostNetwork)
	return errors.Join(err, t.clean(context.WithoutCancel(ctx), id))
}

// sweep cleans up after trials that a crash cut short. It must be over before
// pods are recovered, which would take what is left for a container without a
// record, and remove it while the next trial makes it anew.
func (t *trials) sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, trialTime)
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
// left of it after an error, the next davitd sweeps.
func (t *trials) clean(ctx context.Context, id string) error {
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
