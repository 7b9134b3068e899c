package testkit

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// arrange makes the new namespaces look like a node's: mounts shared among
// themselves but with nobody outside, loopback up, cgroups usable.
func arrange() error {
	// Private first: this leaves the peer groups of the machine.
	for _, propagation := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", unix.MS_REC|propagation, ""); err != nil {
			return fmt.Errorf("change propagation of /: %w", err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	return mountControllers()
}

// mountControllers mounts, on a host of the hybrid layout, each controller
// that would else be in the v2 tree: crun refuses to run with controllers in both.
func mountControllers() error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter("/sys/fs/cgroup"))
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	var v1, v2 bool
	var mounted []string
	for _, m := range mounts {
		v1 = v1 || m.FSType == "cgroup"
		v2 = v2 || m.FSType == "cgroup2"
		mounted = append(mounted, strings.Split(m.VFSOptions, ",")...)
	}
	if !v1 || !v2 {
		return nil
	}
	for _, name := range controllers() {
		if slices.Contains(mounted, name) {
			continue
		}
		dir := filepath.Join("/sys/fs/cgroup", name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make room for cgroup controller %s: %w", name, err)
		}
		err := unix.Mount("cgroup", dir, "cgroup", 0, name)
		if err != nil && !errors.Is(err, unix.EBUSY) { // busy: in use in the v2 tree
			return fmt.Errorf("mount cgroup controller %s: %w", name, err)
		}
	}
	return nil
}

// controllers returns the enabled controllers that may be listed in a v2 tree.
func controllers() []string {
	f, err := os.Open("/proc/cgroups")
	if err != nil {
		return nil
	}
	defer f.Close()
	var names []string
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		inV2 := []string{"cpuset", "cpu", "blkio", "memory", "hugetlb", "pids", "rdma", "misc"}
		if len(fields) == 4 && fields[3] == "1" && slices.Contains(inV2, fields[0]) {
			names = append(names, fields[0])
		}
	}
	return names
}
