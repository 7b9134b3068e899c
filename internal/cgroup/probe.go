package cgroup

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/moby/sys/mountinfo"

	"github.com/davit-runtime/davit/internal/fault"
)

// A Host knows this host's control groups. Safe for concurrent use.
type Host struct {
	log    *slog.Logger
	layout Layout
	driver Driver
	trees  []tree // on v2 exactly one
	units  units  // nil without systemd

	warnParent, warnEnable sync.Once

	moving atomic.Bool // Expect's, one at a time
	moves  sync.WaitGroup
}

// A tree is one mounted hierarchy.
type tree struct {
	mount       string   // where
	controllers []string // on v1: also "name=systemd"; empty for a v2 tree
	unified     bool     // a v2 tree
}

// Probe looks at what is mounted. It returns Unavailable if nothing is.
func Probe(log *slog.Logger) (*Host, error) {
	return probe(log, "/")
}

// WithDriver returns the Host with another driver than the one found, for a
// configuration that names one. It returns Invalid for systemd on a host
// without it.
func (h *Host) WithDriver(d Driver) (*Host, error) {
	switch d {
	case Cgroupfs:
	case Systemd:
		if h.units == nil {
			return nil, fault.New(fault.Invalid, "", "cgroup driver systemd: this host was not booted with systemd")
		}
	default:
		return nil, fault.New(fault.Invalid, "", "unknown cgroup driver %q", d)
	}
	return &Host{log: h.log, layout: h.layout, driver: d, trees: h.trees, units: h.units}, nil
}

// Driver returns who makes cgroups: systemd where it is the host's first process.
func (h *Host) Driver() Driver { return h.driver }

// Layout returns how control groups are mounted.
func (h *Host) Layout() Layout { return h.layout }

// probe reads mount table and marks of systemd below root.
func probe(log *slog.Logger, root string) (*Host, error) {
	f, err := os.Open(filepath.Join(root, "proc/self/mountinfo"))
	if err != nil {
		return nil, fault.New(fault.Internal, "cgroup.Probe", "%w", err)
	}
	defer f.Close()
	mounts, err := mountinfo.GetMountsFromReader(f, mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fault.New(fault.Internal, "cgroup.Probe", "mount table: %w", err)
	}
	h := &Host{log: log, driver: Cgroupfs}
	if h.layout, h.trees, err = layOut(mounts); err != nil {
		return nil, err
	}
	for i := range h.trees {
		h.trees[i].mount = filepath.Join(root, h.trees[i].mount)
	}
	// The mark that sd_booted(3) looks for.
	if st, err := os.Lstat(filepath.Join(root, "run/systemd/system")); err == nil && st.IsDir() {
		h.driver, h.units = Systemd, &bus{log: log}
	}
	return h, nil
}

// layOut sorts the mounted hierarchies. Of one mounted twice the first counts.
func layOut(mounts []*mountinfo.Info) (Layout, []tree, error) {
	var v1 []tree
	var v2 *tree
	controllers := false
	for _, m := range mounts {
		if m.FSType == "cgroup2" {
			if v2 == nil {
				v2 = &tree{mount: m.Mountpoint, unified: true}
			}
			continue
		}
		t := tree{mount: m.Mountpoint, controllers: v1Controllers(m.VFSOptions)}
		if len(t.controllers) == 0 || slices.ContainsFunc(v1, func(o tree) bool { return slices.Equal(o.controllers, t.controllers) }) {
			continue
		}
		named := slices.ContainsFunc(t.controllers, func(c string) bool { return strings.HasPrefix(c, "name=") })
		controllers = controllers || !named
		v1 = append(v1, t)
	}
	switch {
	case v2 != nil && !controllers:
		return V2, []tree{*v2}, nil
	case v2 != nil:
		return Hybrid, append(v1, *v2), nil
	case len(v1) > 0:
		return V1, v1, nil
	}
	return "", nil, fault.New(fault.Unavailable, "cgroup.Probe", "no control groups are mounted on this host")
}

// v1Controllers picks controllers and the name out of a super block's options.
func v1Controllers(options string) []string {
	var out []string
	for o := range strings.SplitSeq(options, ",") {
		switch o {
		case "rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods", "nofavordynmods", "seclabel", "none", "":
		default:
			if !strings.HasPrefix(o, "release_agent=") {
				out = append(out, o)
			}
		}
	}
	return out
}
