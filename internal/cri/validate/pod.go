package validate

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod checks RunPodSandbox's config.
func (c *Check) Pod(config *runtimeapi.PodSandboxConfig, apparmor bool) {
	if config == nil {
		c.Bad("config", "is missing")
		return
	}
	m := config.GetMetadata()
	if m == nil {
		c.Bad("config.metadata", "is missing")
	}
	c.Name("config.metadata.name", m.GetName())
	c.Name("config.metadata.namespace", m.GetNamespace())
	c.Name("config.metadata.uid", m.GetUid())
	hostNetwork := config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE
	c.hostname("config.hostname", config.GetHostname(), hostNetwork)
	if dir := config.GetLogDirectory(); dir != "" {
		c.Absolute("config.log_directory", dir)
		if climbs(dir) {
			c.Bad("config.log_directory", "%q climbs by \"..\"", dir)
		}
	}
	c.dns("config.dns_config", config.GetDnsConfig())
	c.ports("config.port_mappings", config.GetPortMappings())
	c.linuxPod("config.linux", config.GetLinux(), apparmor)
}

func (c *Check) hostname(field, name string, hostNetwork bool) {
	if name == "" {
		return // the host's is kept
	}
	if hostNetwork {
		c.Bad(field, "%q is set, but a pod on the host's network has the host's name", name)
	}
	if len(name) > 64 {
		c.Bad(field, "is %d bytes long, the kernel allows 64", len(name))
	}
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || r != '-' && r != '.' && r != '_') {
			c.Bad(field, "%q is not a host name", name)
		}
	}
}

// dns refuses what would break the lines of resolv.conf.
func (c *Check) dns(field string, dns *runtimeapi.DNSConfig) {
	for i, s := range dns.GetServers() {
		c.address(fmt.Sprintf("%s.servers[%d]", field, i), s)
	}
	for i, s := range dns.GetSearches() {
		c.word(fmt.Sprintf("%s.searches[%d]", field, i), s)
	}
	for i, s := range dns.GetOptions() {
		c.word(fmt.Sprintf("%s.options[%d]", field, i), s)
	}
}

func (c *Check) word(field, value string) {
	c.Set(field, value)
	if strings.ContainsAny(value, " \t\r\n\x00") {
		c.Bad(field, "%q contains white space", value)
	}
}

func (c *Check) ports(field string, ports []*runtimeapi.PortMapping) {
	type hostPort struct {
		protocol runtimeapi.Protocol
		ip       string
		port     int32
	}
	taken := map[hostPort]int32{}
	for i, p := range ports {
		f := fmt.Sprintf("%s[%d]", field, i)
		c.Enum(f+".protocol", int32(p.GetProtocol()), runtimeapi.Protocol_name)
		if n := p.GetHostPort(); n < 0 || n > 65535 {
			c.Bad(f+".host_port", "%d is not from 0 to 65535", n)
		}
		if n := p.GetContainerPort(); n < 0 || n > 65535 {
			c.Bad(f+".container_port", "%d is not from 0 to 65535", n)
		}
		if ip := p.GetHostIp(); ip != "" {
			c.address(f+".host_ip", ip)
			if a, err := netip.ParseAddr(ip); err == nil && a.Zone() != "" {
				c.Bad(f+".host_ip", "%q has a zone", ip)
			}
		}
		if p.GetHostPort() == 0 {
			continue // CRI: no host port is asked for
		}
		if p.GetContainerPort() == 0 {
			c.Bad(f+".container_port", "is missing for host_port %d", p.GetHostPort())
		}
		key := hostPort{p.GetProtocol(), p.GetHostIp(), p.GetHostPort()}
		if other, ok := taken[key]; ok && other != p.GetContainerPort() {
			c.Bad(f+".host_port", "%d is mapped to container port %d already", p.GetHostPort(), other)
		}
		taken[key] = p.GetContainerPort()
	}
}

func (c *Check) linuxPod(field string, l *runtimeapi.LinuxPodSandboxConfig, apparmor bool) {
	c.cgroupParent(field+".cgroup_parent", l.GetCgroupParent())
	sc := l.GetSecurityContext()
	f := field + ".security_context"
	c.namespaces(f+".namespace_options", sc.GetNamespaceOptions())
	if sc.GetNamespaceOptions().GetPid() == runtimeapi.NamespaceMode_TARGET {
		c.Bad(f+".namespace_options.pid", "TARGET is for containers only")
	}
	c.sysctls(field+".sysctls", l.GetSysctls(), sc.GetNamespaceOptions())
	c.id(f+".run_as_user", sc.GetRunAsUser())
	c.id(f+".run_as_group", sc.GetRunAsGroup())
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		c.Bad(f+".run_as_group", "is set without run_as_user")
	}
	c.groups(f, sc.GetSupplementalGroups(), sc.GetSupplementalGroupsPolicy())
	//lint:ignore SA1019 old kubelets send only this string
	c.seccomp(f, sc.GetSeccomp(), sc.GetSeccompProfilePath())
	c.apparmor(f, sc.GetApparmor(), "", apparmor)
	c.selinux(f, sc.GetSelinuxOptions())
	c.Resources(field+".overhead", l.GetOverhead())
	c.Resources(field+".resources", l.GetResources())
}

// cgroupParent accepts cgroupfs syntax, and a slice's bare name.
func (c *Check) cgroupParent(field, parent string) {
	c.Text(field, parent)
	switch {
	case parent == "":
	case climbs(parent):
		c.Bad(field, "%q climbs by \"..\"", parent)
	case strings.ContainsAny(parent, ":\n"):
		c.Bad(field, "%q contains a colon or a line break", parent)
	case !filepath.IsAbs(parent) && (!strings.HasSuffix(parent, ".slice") || strings.Contains(parent, "/")):
		c.Bad(field, "%q is not an absolute path", parent)
	}
}

// ipcSysctls belong to an IPC namespace, as all below fs.mqueue do.
// kernel: sysctl/kernel.rst, ipc/ipc_sysctl.c.
var ipcSysctls = []string{
	"kernel.msg_next_id", "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.sem_next_id",
	"kernel.shm_next_id", "kernel.shm_rmid_forced", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
}

// sysctls refuses those that would change the host.
func (c *Check) sysctls(field string, sysctls map[string]string, ns *runtimeapi.NamespaceOption) {
	for key, value := range sysctls {
		f := fmt.Sprintf("%s[%q]", field, key)
		if strings.ContainsAny(value, "\x00\n") {
			c.Bad(f, "the value contains a line break or a zero byte")
		}
		name := dotted(key)
		parts := strings.Split(name, ".")
		if slices.ContainsFunc(parts, func(p string) bool { return strings.Trim(p, "/") == "" }) ||
			strings.ContainsAny(name, "\x00 \t\n") {
			c.Bad(f, "is not a sysctl's name")
		}
		switch {
		case parts[0] == "net" && len(parts) > 1:
			if ns.GetNetwork() == runtimeapi.NamespaceMode_NODE {
				c.Bad(f, "would change the host: the pod is on the host's network")
			}
		case strings.HasPrefix(name, "fs.mqueue."), slices.Contains(ipcSysctls, name):
			if ns.GetIpc() == runtimeapi.NamespaceMode_NODE {
				c.Bad(f, "would change the host: the pod uses the host's IPC")
			}
		case name == "kernel.domainname":
			if ns.GetNetwork() == runtimeapi.NamespaceMode_NODE {
				c.Bad(f, "would change the host: the pod has the host's name")
			}
		case name == "kernel.hostname":
			c.Bad(f, "is set by config.hostname")
		default:
			c.Bad(f, "does not belong to a namespace and would change the host")
		}
	}
}

// dotted returns a sysctl's name with dots between its parts. As in sysctl(8),
// the separator that comes first separates; the other one is part of a name,
// where a slash stands for a dot: "net/ipv4/conf/eth0.1/forwarding".
func dotted(name string) string {
	i := strings.IndexAny(name, "./")
	if i < 0 || name[i] == '.' {
		return name
	}
	return strings.Map(swapped, name)
}

func swapped(r rune) rune {
	switch r {
	case '/':
		return '.'
	case '.':
		return '/'
	}
	return r
}
