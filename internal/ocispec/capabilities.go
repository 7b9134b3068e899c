package ocispec

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// capabilityNames are all the kernel has, by number.
// kernel: include/uapi/linux/capability.h
var capabilityNames = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// defaultCapabilities are the 14 that every runtime gives.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// capabilities computes the sets. Only those in allowed are ever given.
//
// The inheritable set holds the ambient ones alone (without it they could not
// be raised): a filled one lets file capabilities through unasked, CVE-2022-24769.
//
// CRI: api.proto, Capability.
func capabilities(sc *runtimeapi.LinuxContainerSecurityContext, allowed []string) (*specs.LinuxCapabilities, error) {
	if sc.GetPrivileged() {
		return capabilitySets(slices.Clone(allowed), nil), nil
	}
	add, addAll, err := parseCapabilities(sc.GetCapabilities().GetAddCapabilities())
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := parseCapabilities(sc.GetCapabilities().GetDropCapabilities())
	if err != nil {
		return nil, err
	}
	ambient, ambientAll, err := parseCapabilities(sc.GetCapabilities().GetAddAmbientCapabilities())
	if err != nil {
		return nil, err
	}
	if ambientAll {
		ambient = allowed
	}
	given := defaultCapabilities
	if addAll {
		given = allowed
	}
	if dropAll { // before what is added by name: drop ALL, add X leaves X
		given = nil
	}
	given = slices.Concat(given, add, ambient)
	keep := func(c string) bool { return slices.Contains(allowed, c) && !slices.Contains(drop, c) }
	return capabilitySets(filter(given, keep), filter(ambient, keep)), nil
}

func capabilitySets(given, ambient []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{
		Bounding: given, Effective: given, Permitted: given,
		Inheritable: ambient, Ambient: ambient,
	}
}

// parseCapabilities brings names into the kernel's form; all reports whether
// "ALL" is among them. It returns Invalid for one that is unknown.
func parseCapabilities(names []string) (caps []string, all bool, err error) {
	for _, name := range names {
		c := strings.ToUpper(name)
		if c == "ALL" || c == "CAP_ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if !slices.Contains(capabilityNames, c) {
			return nil, false, fault.New(fault.Invalid, "", "unknown capability %q", name)
		}
		caps = append(caps, c)
	}
	return caps, all, nil
}

// filter returns the elements that keep wants, each once, in their order.
func filter(in []string, keep func(string) bool) []string {
	var out []string
	for _, s := range in {
		if keep(s) && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
