package contract

import (
	"fmt"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A demand says who asks for a refusal.
type demand bool

const (
	cri  demand = true  // the CRI does: every runtime must refuse
	ours demand = false // davit does: a runtime may do something sensible instead
)

const (
	invalid = codes.InvalidArgument
	failed  = codes.FailedPrecondition
)

// A podRequest is RunPodSandbox's, with its parts at hand.
type podRequest struct {
	*runtimeapi.RunPodSandboxRequest
	c  *runtimeapi.PodSandboxConfig
	l  *runtimeapi.LinuxPodSandboxConfig
	s  *runtimeapi.LinuxSandboxSecurityContext
	ns *runtimeapi.NamespaceOption
}

type badPod struct {
	by     demand
	name   string
	code   codes.Code
	text   string // what the error must name
	change func(p *podRequest)
}

// badPods are wrong configurations; without user namespaces, those of them are
// nothing to a runtime.
func badPods(userNamespaces bool) []badPod {
	return slices.Concat(badBasics, badPorts(), badSysctls(), badPodSecurity(), badUserNamespaces(demand(userNamespaces)), badPodResources())
}

var badBasics = []badPod{
	{cri, "config missing", invalid, "config", func(p *podRequest) { p.Config = nil }},
	{cri, "metadata missing", invalid, "config.metadata", func(p *podRequest) { p.c.Metadata = nil }},
	{ours, "name empty", invalid, "config.metadata.name", func(p *podRequest) { p.c.Metadata.Name = "" }},
	{ours, "namespace empty", invalid, "config.metadata.namespace", func(p *podRequest) { p.c.Metadata.Namespace = "" }},
	{ours, "uid empty", invalid, "config.metadata.uid", func(p *podRequest) { p.c.Metadata.Uid = "" }},
	{ours, "name too long", invalid, "config.metadata.name", func(p *podRequest) { p.c.Metadata.Name = strings.Repeat("n", 254) }},
	{ours, "name with a slash", invalid, "config.metadata.name", func(p *podRequest) { p.c.Metadata.Name = "a/b" }},
	{ours, "namespace climbs", invalid, "config.metadata.namespace", func(p *podRequest) { p.c.Metadata.Namespace = "../../x" }},
	{ours, "uid with a line break", invalid, "config.metadata.uid", func(p *podRequest) { p.c.Metadata.Uid = "a\nb" }},
	{ours, "name with a zero byte", invalid, "config.metadata.name", func(p *podRequest) { p.c.Metadata.Name = "a\x00b" }},
	{ours, "name with a space", invalid, "config.metadata.name", func(p *podRequest) { p.c.Metadata.Name = "a b" }},
	{cri, "handler unknown", invalid, "nosuch", func(p *podRequest) { p.RuntimeHandler = "nosuch" }},
	{cri, "handler climbs", invalid, "runtime_handler", func(p *podRequest) { p.RuntimeHandler = "../runc" }},
	{ours, "hostname too long", invalid, "config.hostname", func(p *podRequest) { p.c.Hostname = strings.Repeat("h", 65) }},
	{ours, "hostname with a space", invalid, "config.hostname", func(p *podRequest) { p.c.Hostname = "a b" }},
	{ours, "hostname with a zero byte", invalid, "config.hostname", func(p *podRequest) { p.c.Hostname = "a\x00" }},
	{ours, "hostname with a line break", invalid, "config.hostname", func(p *podRequest) { p.c.Hostname = "a\n127.0.0.1 b" }},
	{ours, "hostname starts with a dash", invalid, "config.hostname", func(p *podRequest) { p.c.Hostname = "-a" }},
	{ours, "hostname on the host's network", invalid, "config.hostname", func(p *podRequest) { p.ns.Network = runtimeapi.NamespaceMode_NODE }},
	{ours, "log directory relative", invalid, "config.log_directory", func(p *podRequest) { p.c.LogDirectory = "relative" }},
	{ours, "log directory climbs", invalid, "config.log_directory", func(p *podRequest) { p.c.LogDirectory = "/tmp/../etc/x" }},
	{ours, "log directory with a zero byte", invalid, "config.log_directory", func(p *podRequest) { p.c.LogDirectory = "/tmp/a\x00" }},
	{ours, "DNS server is a name", invalid, "config.dns_config.servers[1]", func(p *podRequest) {
		p.c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.0.0.1", "ns.example"}}
	}},
	{ours, "DNS search with a space", invalid, "config.dns_config.searches[0]", func(p *podRequest) {
		p.c.DnsConfig = &runtimeapi.DNSConfig{Searches: []string{"a b"}}
	}},
	{ours, "DNS option with a line break", invalid, "config.dns_config.options[0]", func(p *podRequest) {
		p.c.DnsConfig = &runtimeapi.DNSConfig{Options: []string{"ndots:5\nnameserver 6.6.6.6"}}
	}},
	{ours, "DNS option empty", invalid, "config.dns_config.options[0]", func(p *podRequest) {
		p.c.DnsConfig = &runtimeapi.DNSConfig{Options: []string{""}}
	}},
}

func badPorts() []badPod {
	ports := func(mappings ...*runtimeapi.PortMapping) func(*podRequest) {
		return func(p *podRequest) { p.c.PortMappings = mappings }
	}
	return []badPod{
		{ours, "protocol unknown", invalid, "config.port_mappings[0].protocol", ports(&runtimeapi.PortMapping{Protocol: 9, ContainerPort: 80})},
		{ours, "host port too high", invalid, "config.port_mappings[0].host_port", ports(&runtimeapi.PortMapping{HostPort: 70000, ContainerPort: 80})},
		{ours, "host port negative", invalid, "config.port_mappings[0].host_port", ports(&runtimeapi.PortMapping{HostPort: -1, ContainerPort: 80})},
		{ours, "container port too high", invalid, "config.port_mappings[0].container_port", ports(&runtimeapi.PortMapping{ContainerPort: 65536})},
		{ours, "container port negative", invalid, "config.port_mappings[0].container_port", ports(&runtimeapi.PortMapping{ContainerPort: -5})},
		{ours, "container port missing", invalid, "config.port_mappings[0].container_port", ports(&runtimeapi.PortMapping{HostPort: 18081})},
		{ours, "host address nonsense", invalid, "config.port_mappings[0].host_ip", ports(&runtimeapi.PortMapping{HostIp: "here", HostPort: 18081, ContainerPort: 80})},
		{ours, "host address with a zone", invalid, "config.port_mappings[0].host_ip", ports(&runtimeapi.PortMapping{HostIp: "fe80::1%lo", HostPort: 18081, ContainerPort: 80})},
		{ours, "host port twice", invalid, "config.port_mappings[1].host_port", ports(
			&runtimeapi.PortMapping{HostPort: 18081, ContainerPort: 80}, &runtimeapi.PortMapping{HostPort: 18081, ContainerPort: 81})},
	}
}

func badSysctls() []badPod {
	sysctl := func(name, value string) func(*podRequest) {
		return func(p *podRequest) { p.l.Sysctls = map[string]string{name: value} }
	}
	return []badPod{
		{ours, "sysctl of the host", invalid, "vm.swappiness", sysctl("vm.swappiness", current("vm/swappiness"))},
		{ours, "sysctl of the host, with slashes", invalid, "kernel/panic", sysctl("kernel/panic", current("kernel/panic"))},
		{ours, "sysctl absent", invalid, "net/no/such", sysctl("net.no.such", "1")},
		{ours, "sysctl climbs", invalid, "sysctls", sysctl("net/../kernel/panic", current("kernel/panic"))},
		{ours, "sysctl climbs with dots", invalid, "sysctls", sysctl("net.//.//.kernel.panic", current("kernel/panic"))},
		{ours, "sysctl with an empty part", invalid, "sysctls", sysctl("net..ipv4", "1")},
		{ours, "sysctl empty", invalid, "sysctls", sysctl("", "1")},
		{ours, "sysctl value refused by the kernel", invalid, "net/ipv4/ip_forward", sysctl("net.ipv4.ip_forward", "x")},
		{ours, "sysctl value with a zero byte", invalid, "net.ipv4.ip_forward", sysctl("net.ipv4.ip_forward", "1\x00")},
		{ours, "sysctl value with a line break", invalid, "net.ipv4.ip_forward", sysctl("net.ipv4.ip_forward", "1\n0")},
		{ours, "sysctl that is the hostname", invalid, "kernel.hostname", sysctl("kernel.hostname", current("kernel/hostname"))},
		{ours, "network sysctl on the host's network", invalid, "net.core.somaxconn", func(p *podRequest) {
			p.c.Hostname, p.ns.Network = "", runtimeapi.NamespaceMode_NODE
			p.l.Sysctls = map[string]string{"net.core.somaxconn": current("net/core/somaxconn")}
		}},
		{ours, "IPC sysctl with the host's IPC", invalid, "kernel.shmmax", func(p *podRequest) {
			p.ns.Ipc = runtimeapi.NamespaceMode_NODE
			p.l.Sysctls = map[string]string{"kernel.shmmax": current("kernel/shmmax")}
		}},
	}
}

// current is a setting as it is, so that a runtime that sets it on the host changes nothing.
func current(name string) string {
	value, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		panic(err)
	}
	return strings.TrimSpace(string(value))
}

func badPodSecurity() []badPod {
	const at = "config.linux.security_context."
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	return []badPod{
		{ours, "cgroup parent climbs", invalid, "config.linux.cgroup_parent", func(p *podRequest) { p.l.CgroupParent = "/../" + p.c.Metadata.Namespace }},
		{ours, "cgroup parent relative", invalid, "config.linux.cgroup_parent", func(p *podRequest) { p.l.CgroupParent = p.c.Metadata.Namespace + "/b" }},
		{ours, "cgroup parent with a colon", invalid, "config.linux.cgroup_parent", func(p *podRequest) { p.l.CgroupParent = "/" + p.c.Metadata.Namespace + ":b" }},
		{ours, "cgroup parent with a zero byte", invalid, "config.linux.cgroup_parent", func(p *podRequest) { p.l.CgroupParent = "/" + p.c.Metadata.Namespace + "\x00" }},
		{ours, "network namespace of a container", invalid, at + "namespace_options.network", func(p *podRequest) { p.ns.Network = runtimeapi.NamespaceMode_CONTAINER }},
		{ours, "network namespace of a target", invalid, at + "namespace_options.network", func(p *podRequest) { p.ns.Network = runtimeapi.NamespaceMode_TARGET }},
		{ours, "network namespace unknown", invalid, at + "namespace_options.network", func(p *podRequest) { p.ns.Network = 99 }},
		{ours, "IPC namespace of a container", invalid, at + "namespace_options.ipc", func(p *podRequest) { p.ns.Ipc = runtimeapi.NamespaceMode_CONTAINER }},
		{ours, "IPC namespace unknown", invalid, at + "namespace_options.ipc", func(p *podRequest) { p.ns.Ipc = -1 }},
		{ours, "PID namespace of a target", invalid, at + "namespace_options.pid", func(p *podRequest) { p.ns.Pid, p.ns.TargetId = runtimeapi.NamespaceMode_TARGET, "x" }},
		{ours, "PID namespace unknown", invalid, at + "namespace_options.pid", func(p *podRequest) { p.ns.Pid = 99 }},
		{ours, "target without TARGET", invalid, at + "namespace_options.target_id", func(p *podRequest) { p.ns.TargetId = "x" }},
		{cri, "group without user", invalid, at + "run_as_group", func(p *podRequest) { p.s.RunAsGroup = id(1) }},
		{ours, "user negative", invalid, at + "run_as_user", func(p *podRequest) { p.s.RunAsUser = id(-1) }},
		{ours, "user too large", invalid, at + "run_as_user", func(p *podRequest) { p.s.RunAsUser = id(math.MaxUint32) }},
		{ours, "group negative", invalid, at + "run_as_group", func(p *podRequest) { p.s.RunAsUser, p.s.RunAsGroup = id(1), id(-1) }},
		{ours, "supplemental group negative", invalid, at + "supplemental_groups[1]", func(p *podRequest) { p.s.SupplementalGroups = []int64{1, -1} }},
		{ours, "supplemental groups policy unknown", invalid, at + "supplemental_groups_policy", func(p *podRequest) { p.s.SupplementalGroupsPolicy = 9 }},
		{ours, "seccomp type unknown", invalid, at + "seccomp.profile_type", func(p *podRequest) { p.s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: 9} }},
		{ours, "seccomp path relative", invalid, at + "seccomp.localhost_ref", func(p *podRequest) {
			p.s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "a.json"}
		}},
		{ours, "seccomp path missing", invalid, at + "seccomp.localhost_ref", func(p *podRequest) {
			p.s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost}
		}},
		{ours, "seccomp path without Localhost", invalid, at + "seccomp.localhost_ref", func(p *podRequest) {
			p.s.Seccomp = &runtimeapi.SecurityProfile{LocalhostRef: "/a.json"}
		}},
		{ours, "old seccomp profile nonsense", invalid, at + "seccomp_profile_path", func(p *podRequest) {
			//lint:ignore SA1019 old kubelets send only this string
			p.s.SeccompProfilePath = "nonsense"
		}},
		{ours, "old seccomp profile relative", invalid, at + "seccomp_profile_path", func(p *podRequest) {
			//lint:ignore SA1019 as above
			p.s.SeccompProfilePath = "localhost/a.json"
		}},
		{ours, "AppArmor type unknown", invalid, at + "apparmor.profile_type", func(p *podRequest) { p.s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: 9} }},
		{ours, "AppArmor profile missing", invalid, at + "apparmor.localhost_ref", func(p *podRequest) {
			p.s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost}
		}},
	}
}

func badUserNamespaces(by demand) []badPod {
	const at = "config.linux.security_context.namespace_options.userns_options."
	type mapping = runtimeapi.IDMapping
	set := func(mode runtimeapi.NamespaceMode, uids, gids []*mapping) func(*podRequest) {
		return func(p *podRequest) {
			p.ns.UsernsOptions = &runtimeapi.UserNamespace{Mode: mode, Uids: uids, Gids: gids}
		}
	}
	good := []*mapping{{HostId: 100000, ContainerId: 0, Length: 65536}}
	two := []*mapping{{HostId: 100000, ContainerId: 0, Length: 10}, {HostId: 200000, ContainerId: 10, Length: 10}}
	const pod = runtimeapi.NamespaceMode_POD
	return []badPod{
		{by, "user namespace unknown", invalid, at + "mode", set(99, nil, nil)},
		{by, "user namespace of a container", invalid, at + "mode", set(runtimeapi.NamespaceMode_CONTAINER, good, good)},
		{by, "user namespace of a target", invalid, at + "mode", set(runtimeapi.NamespaceMode_TARGET, good, good)},
		{ours, "mappings without a user namespace", invalid, at + "uids", set(runtimeapi.NamespaceMode_NODE, good, nil)},
		{ours, "group mappings without a user namespace", invalid, at + "gids", set(runtimeapi.NamespaceMode_NODE, nil, good)},
		{by, "no mapping", invalid, at + "uids", set(pod, nil, nil)},
		{by, "no group mapping", invalid, at + "gids", set(pod, good, nil)},
		{by, "two mappings", invalid, at + "uids", set(pod, two, good)},
		{by, "two group mappings", invalid, at + "gids", set(pod, good, two)},
		{by, "root unmapped", invalid, at + "uids", set(pod, []*mapping{{HostId: 100000, ContainerId: 1, Length: 65536}}, good)},
		{by, "empty mapping", invalid, at + "uids", set(pod, []*mapping{{HostId: 100000}}, good)},
		{ours, "mapping beyond 32 bits", invalid, at + "gids", set(pod, good, []*mapping{{HostId: math.MaxUint32 - 5, Length: 65536}})},
	}
}

func badPodResources() []badPod {
	var rows []badPod
	for _, r := range badResources {
		rows = append(rows,
			badPod{ours, "resources: " + r.name, invalid, "config.linux.resources." + r.field, func(p *podRequest) { p.l.Resources = r.value }},
			badPod{ours, "overhead: " + r.name, invalid, "config.linux.overhead." + r.field, func(p *podRequest) { p.l.Overhead = r.value }})
	}
	return rows
}

// badResources are wrong wherever resources are.
var badResources = []struct {
	name, field string
	value       *runtimeapi.LinuxContainerResources
}{
	{"period too short", "cpu_period", &runtimeapi.LinuxContainerResources{CpuPeriod: 1}},
	{"period too long", "cpu_period", &runtimeapi.LinuxContainerResources{CpuPeriod: 2000000}},
	{"period negative", "cpu_period", &runtimeapi.LinuxContainerResources{CpuPeriod: -100000}},
	{"quota too small", "cpu_quota", &runtimeapi.LinuxContainerResources{CpuQuota: 10}},
	{"quota negative", "cpu_quota", &runtimeapi.LinuxContainerResources{CpuQuota: -5}},
	{"shares negative", "cpu_shares", &runtimeapi.LinuxContainerResources{CpuShares: -1}},
	{"memory negative", "memory_limit_in_bytes", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -2}},
	{"swap negative", "memory_swap_limit_in_bytes", &runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: -2}},
	{"swap below memory", "memory_swap_limit_in_bytes", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 32 << 20}},
	{"oom_score_adj too high", "oom_score_adj", &runtimeapi.LinuxContainerResources{OomScoreAdj: 1001}},
	{"oom_score_adj too low", "oom_score_adj", &runtimeapi.LinuxContainerResources{OomScoreAdj: -1001}},
	{"cpuset nonsense", "cpuset_cpus", &runtimeapi.LinuxContainerResources{CpusetCpus: "all"}},
	{"cpuset backwards", "cpuset_cpus", &runtimeapi.LinuxContainerResources{CpusetCpus: "3-1"}},
	{"cpuset with a zero byte", "cpuset_cpus", &runtimeapi.LinuxContainerResources{CpusetCpus: "0\x00"}},
	{"cpuset nodes nonsense", "cpuset_mems", &runtimeapi.LinuxContainerResources{CpusetMems: "-"}},
	{"huge page size nonsense", "hugepage_limits[0].page_size", &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "big", Limit: 1}}}},
	{"unified climbs", "unified", &runtimeapi.LinuxContainerResources{Unified: map[string]string{"../memory.max": "1"}}},
	{"unified without a controller", "unified", &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory": "1"}}},
	{"unified with a zero byte", "unified", &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "1\x00"}}},
}

// TestPodsRefused: each mistake in a pod's configuration is told by its field,
// and leaves nothing.
func TestPodsRefused(t *testing.T) {
	w := shared(t)
	before := w.residue()
	names := map[string]bool{}
	for i, row := range badPods(w.features().GetUserNamespaces()) {
		if names[row.name] {
			t.Errorf("two rows %q", row.name)
		}
		names[row.name] = true
		t.Run(row.name, func(t *testing.T) {
			w := w.within(t)
			c := w.podConfig(fmt.Sprintf("refused-%d", i))
			p := &podRequest{&runtimeapi.RunPodSandboxRequest{Config: c}, c, c.Linux, c.Linux.SecurityContext, c.Linux.SecurityContext.NamespaceOptions}
			row.change(p)
			r, err := w.c.RunPodSandbox(w.ctx, p.RunPodSandboxRequest)
			w.refused(err, row.by, row.code, row.text)
			if err == nil {
				if err := w.removePod(w.ctx, r.PodSandboxId); err != nil {
					t.Error(err)
				}
			}
			if after := w.residue(); !slices.Equal(before, after) {
				t.Errorf("left behind: %v; before: %v", after, before)
			}
		})
	}
}

// refused judges the answer to a request that a row of a table made bad.
func (w *world) refused(err error, by demand, code codes.Code, text string) {
	w.t.Helper()
	if by == cri {
		want(w.t, err, code, text)
	} else {
		prefer(w.t, err, code, text)
	}
}

// TestHostPortTaken: by another pod, and by a process of the host.
func TestHostPortTaken(t *testing.T) {
	w := shared(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := int32(l.Addr().(*net.TCPAddr).Port)
	_ = l.Close()
	taken := func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{HostPort: port, ContainerPort: 80}}
	}
	w.pod("taker", taken)
	before := w.residue()
	config := w.podConfig("late")
	taken(config)
	_, err = w.c.RunPod(w.ctx, config)
	prefer(t, err, codes.FailedPrecondition, fmt.Sprint(port))
	if after := w.residue(); err != nil && !slices.Equal(before, after) {
		t.Errorf("left behind: %v; before: %v", after, before)
	}
}
