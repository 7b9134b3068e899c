package ocispec

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// mounts returns davit's mounts and the container's, parents first, and the
// propagation that the root needs for them.
func mounts(in Input) (all []specs.Mount, rootPropagation string, err error) {
	mounted := map[string]bool{}
	var own []specs.Mount
	for _, m := range in.Container.Mounts {
		o, err := bindMount(in, m)
		if err != nil {
			return nil, "", err
		}
		switch {
		case m.Propagation == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
			rootPropagation = "rshared"
		case m.Propagation == runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER && rootPropagation == "":
			rootPropagation = "rslave"
		}
		mounted[o.Destination] = true
		own = append(own, o)
	}
	for _, m := range standardMounts(in) {
		// A /dev from outside has its own pts, shm and mqueue.
		if mounted[m.Destination] || mounted["/dev"] && strings.HasPrefix(m.Destination, "/dev/") {
			continue
		}
		all = append(all, m)
	}
	all = append(all, own...)
	slices.SortStableFunc(all, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	return all, rootPropagation, nil
}

func depth(p string) int {
	if p == "/" {
		return 0
	}
	return strings.Count(p, "/")
}

// standardMounts are those that every container has.
func standardMounts(in Input) []specs.Mount {
	sc := in.Container.GetLinux().GetSecurityContext()
	sysMode, rootMode := "ro", "rw"
	if sc.GetPrivileged() {
		sysMode = "rw"
	}
	if sc.GetReadonlyRootfs() {
		rootMode = "ro"
	}
	all := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{
			"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5",
		}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sysMount(in.Files.Sys, sysMode),
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{
			"nosuid", "noexec", "nodev", "relatime", sysMode,
		}},
	}
	if in.Files.Shm != "" {
		all = append(all, specs.Mount{
			Destination: "/dev/shm", Type: "bind", Source: in.Files.Shm,
			Options: []string{"rbind", "rprivate", "rw"},
		})
	} else {
		all = append(all, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{
			"nosuid", "noexec", "nodev", "mode=1777", "size=65536k",
		}})
	}
	for _, f := range []specs.Mount{
		{Destination: "/etc/resolv.conf", Source: in.Files.ResolvConf},
		{Destination: "/etc/hostname", Source: in.Files.Hostname},
	} {
		if f.Source != "" {
			f.Type, f.Options = "bind", []string{"rbind", "rprivate", rootMode}
			all = append(all, f)
		}
	}
	return all
}

// sysMount is the container's /sys. A new sysfs shows the network namespace, so
// a pod that does not own its own cannot have one, and gets the host's.
func sysMount(source, mode string) specs.Mount {
	if source == "" {
		return specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", mode}}
	}
	return specs.Mount{Destination: "/sys", Type: "bind", Source: source, Options: []string{
		"rbind", "rprivate", "nosuid", "noexec", "nodev", "ro",
	}}
}

// bindMount translates one of the container's own mounts. The source is, by
// now, already as recursive_read_only and ID mappings ask.
//
// CRI: api.proto, Mount.
func bindMount(in Input, m *runtimeapi.Mount) (specs.Mount, error) {
	none := specs.Mount{}
	where := m.ContainerPath
	switch {
	case m.RecursiveReadOnly || len(m.UidMappings) > 0 || len(m.GidMappings) > 0:
		// Not left to the OCI runtime, of which some cannot do it.
		return none, fault.New(fault.Internal, "ocispec.Build", "mount at %s: the source is not made read-only or ID-mapped", where)
	case where == "":
		return none, fault.New(fault.Invalid, "", "mount of %s: no container path", m.HostPath)
	case !path.IsAbs(m.HostPath):
		return none, fault.New(fault.Invalid, "", "mount at %s: host path %q is not absolute", where, m.HostPath)
	}
	options := []string{"rbind"}
	switch m.Propagation {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		options = append(options, "rprivate")
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		options = append(options, "rslave")
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		options = append(options, "rshared")
	default:
		return none, fault.New(fault.Invalid, "", "mount at %s: unknown propagation %d", where, m.Propagation)
	}
	mode := "rw"
	if m.Readonly {
		mode = "ro"
	}
	options = append(options, mode)
	for _, o := range m.MountOptions {
		if o != "noexec" && o != "nodev" && o != "nosuid" {
			return none, fault.New(fault.Invalid, "", "mount at %s: unknown option %q", where, o)
		}
		options = append(options, o)
	}
	source := m.HostPath
	if resolved, ok := in.Found.Sources[m.HostPath]; ok {
		source = resolved
	}
	return specs.Mount{Destination: path.Join("/", where), Type: "bind", Source: source, Options: options}, nil
}
