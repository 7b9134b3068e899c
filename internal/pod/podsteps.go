package pod

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/idmap"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/namespace"
	"github.com/davit-runtime/davit/internal/network"
	"github.com/davit-runtime/davit/internal/store"
)

// stepsOfPods returns what a pod holds, in the order acquired. The names are
// in records: to change one is to change the records' format.
func (p *Pods) stepsOfPods() []step[*pod] {
	return []step[*pod]{
		{"labels", func(*pod) bool { return p.opt.Host.Labels != nil }, p.chooseLabels, p.releaseLabels},
		{"directory", nil, p.makePodDir, p.removePodDir},
		{"cgroup", needsCgroup, p.makePodCgroup, p.removePodCgroup},
		{"namespaces", ownsNamespaces, p.createNamespaces, p.releaseNamespaces},
		{"shm", ownsIPC, p.mountShm, p.unmountShm},
		{"network", ownsNet, p.attachNetwork, p.detachNetwork},
		{"holder", sharesPID, p.startHolder, p.endHolder},
	}
}

func (p *pod) namespaceOption() *runtimeapi.NamespaceOption {
	return p.state.Load().namespaceOption()
}

func (s *podState) namespaceOption() *runtimeapi.NamespaceOption {
	return s.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func ownsNet(p *pod) bool { return p.namespaceOption().GetNetwork() != runtimeapi.NamespaceMode_NODE }
func ownsIPC(p *pod) bool { return p.namespaceOption().GetIpc() != runtimeapi.NamespaceMode_NODE }

// A pod on the host's network has the host's name as well.
func ownsNamespaces(p *pod) bool { return ownsNet(p) || ownsIPC(p) || !p.state.Load().users().Empty() }

// users is how the pod's user namespace maps IDs; empty without one.
func (s *podState) users() idmap.Map {
	u := s.namespaceOption().GetUsernsOptions()
	if u == nil || u.Mode != runtimeapi.NamespaceMode_POD {
		return idmap.Map{}
	}
	m, _ := idmap.FromCRI(u.Uids, u.Gids) // cri has checked it
	return m
}

// CRI: api.proto, NamespaceOption, "The CRI default is POD".
func sharesPID(p *pod) bool { return p.namespaceOption().GetPid() == runtimeapi.NamespaceMode_POD }

// A pod needs nothing of control groups where the kubelet made the parent and
// no holder is to be put anywhere.
func needsCgroup(p *pod) bool {
	return p.state.Load().Config.GetLinux().GetCgroupParent() == "" || sharesPID(p)
}

// namespaceUsers is the pod's user namespace, nil without one.
func (s *podState) namespaceUsers() *idmap.Users {
	m := s.users()
	if m.Empty() {
		return nil
	}
	return &idmap.Users{Map: m, Path: s.Paths["user"]}
}

func (p *Pods) chooseLabels(_ context.Context, pod *pod) error {
	l, err := p.opt.Host.Labels.Pod(pod.state.Load().Config.GetLinux().GetSecurityContext().GetSelinuxOptions())
	if err != nil {
		return err
	}
	return pod.amend(func(s *podState) { s.Labels = l })
}

func (p *Pods) releaseLabels(_ context.Context, pod *pod) error {
	p.opt.Host.Labels.Release(pod.state.Load().Labels)
	return nil
}

// makePodDir makes the pod's directory, with what containers see as
// /etc/resolv.conf and /etc/hostname.
func (p *Pods) makePodDir(_ context.Context, pod *pod) error {
	config, users := pod.state.Load().Config, pod.state.Load().users()
	resolv, err := resolvConf(config.GetDnsConfig(), p.opt.Host.ResolvConf)
	if err != nil {
		return err
	}
	hostname := config.GetHostname()
	if hostname == "" {
		if hostname, err = os.Hostname(); err != nil {
			return err
		}
	}
	dir := p.podDir(pod.id)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"resolv.conf": resolv, "hostname": []byte(hostname + "\n")} {
		file := filepath.Join(dir, name)
		if err := store.WriteFile(file, data, 0o644); err != nil {
			return err
		}
		if err := p.opt.Host.Labels.Relabel(file, pod.state.Load().Labels.Mount); err != nil {
			return err
		}
		if users.Empty() {
			continue
		}
		uid, gid := users.Host(0, 0)
		if err := os.Chown(file, int(uid), int(gid)); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pods) removePodDir(_ context.Context, pod *pod) error {
	return os.RemoveAll(p.podDir(pod.id))
}

func (p *Pods) makePodCgroup(ctx context.Context, pod *pod) error {
	parent := pod.state.Load().Config.GetLinux().GetCgroupParent()
	if parent == "" { // else it is the kubelet's
		if err := p.opt.Cgroups.Prepare(ctx, parent); err != nil {
			return err
		}
	}
	if !sharesPID(pod) {
		return nil
	}
	return p.opt.Cgroups.Create(ctx, pod.state.Load().Place)
}

// removePodCgroup removes the holder's; the parent is not davit's to remove.
func (p *Pods) removePodCgroup(ctx context.Context, pod *pod) error {
	if !sharesPID(pod) {
		return nil
	}
	return p.opt.Cgroups.Remove(ctx, pod.state.Load().Place)
}

func (p *Pods) createNamespaces(ctx context.Context, pod *pod) error {
	config := pod.state.Load().Config
	dir := p.podDir(pod.id)
	spec := namespace.Spec{
		Net: ownsNet(pod), IPC: ownsIPC(pod), UTS: ownsNet(pod),
		Users: pod.state.Load().users(), Sysctls: config.GetLinux().GetSysctls(),
	}
	if spec.UTS {
		spec.Hostname = config.GetHostname()
	}
	if err := p.opt.Namespaces.Create(ctx, dir, spec); err != nil {
		return err
	}
	paths := map[string]string{}
	for name, own := range map[string]bool{"user": !spec.Users.Empty(), "net": spec.Net, "ipc": spec.IPC, "uts": spec.UTS} {
		if own {
			paths[name] = filepath.Join(dir, name)
		}
	}
	return pod.amend(func(s *podState) { s.Paths = paths })
}

func (p *Pods) releaseNamespaces(ctx context.Context, pod *pod) error {
	return p.opt.Namespaces.Release(ctx, p.podDir(pod.id))
}

// resolvConf returns a resolver configuration: config's, or without one a copy of the host's.
func resolvConf(config *runtimeapi.DNSConfig, host string) ([]byte, error) {
	if config == nil {
		data, err := os.ReadFile(host)
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return data, err
	}
	var b strings.Builder
	if len(config.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(config.Searches, " "))
	}
	for _, server := range config.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(config.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(config.Options, " "))
	}
	return []byte(b.String()), nil
}

func (p *Pods) mountShm(_ context.Context, pod *pod) error {
	s := pod.state.Load()
	uid, gid := s.users().Host(0, 0)
	options := fmt.Sprintf("mode=1777,size=65536k,uid=%d,gid=%d", uid, gid)
	if s.Labels.Mount != "" {
		options += fmt.Sprintf(",context=%q", s.Labels.Mount) // it may have commas
	}
	return p.opt.mounts.shm(p.shm(pod.id), options)
}

func (p *Pods) unmountShm(_ context.Context, pod *pod) error {
	return p.opt.mounts.unmount(p.shm(pod.id))
}

func (p *Pods) shm(id string) string { return filepath.Join(p.podDir(id), "shm") }

func (p *Pods) attachNetwork(ctx context.Context, pod *pod) error {
	result, err := p.opt.Network.Attach(ctx, p.networkPod(pod.state.Load()))
	if err != nil {
		return err
	}
	return pod.amend(func(s *podState) { s.Network = result })
}

func (p *Pods) detachNetwork(ctx context.Context, pod *pod) error {
	return p.opt.Network.Detach(ctx, p.networkPod(pod.state.Load()))
}

func (p *Pods) networkPod(s *podState) network.Pod {
	m := s.Config.GetMetadata()
	n := network.Pod{
		ID: s.ID, Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(),
		NetNS:        filepath.Join(p.podDir(s.ID), "net"),
		Labels:       s.Config.GetLabels(),
		Annotations:  s.Config.GetAnnotations(),
		CgroupParent: s.Config.GetLinux().GetCgroupParent(),
	}
	for _, port := range s.Config.GetPortMappings() {
		if port.HostPort == 0 {
			continue
		}
		ip, _ := netip.ParseAddr(port.HostIp) // cri has checked it
		n.Ports = append(n.Ports, network.Port{
			Protocol: strings.ToLower(port.Protocol.String()), HostIP: ip,
			HostPort: uint16(port.HostPort), ContainerPort: uint16(port.ContainerPort),
		})
	}
	return n
}

// startHolder starts the first process of the pod's PID namespace.
func (p *Pods) startHolder(ctx context.Context, pod *pod) error {
	s := pod.state.Load()
	h := monitor.Holder{ID: pod.id, Cgroup: s.Place.Dirs, Users: s.Paths["user"]}
	for _, name := range []string{"net", "ipc", "uts"} {
		if path := s.Paths[name]; path != "" {
			h.Namespaces = append(h.Namespaces, path)
		}
	}
	pid, err := p.opt.Sessions.Hold(ctx, h)
	if err != nil {
		return err
	}
	file := filepath.Join(p.podDir(pod.id), "pid")
	if err := p.opt.mounts.pin(pid, file); err != nil {
		return err
	}
	return pod.amend(func(s *podState) {
		s.HolderPid = pid
		paths := map[string]string{"pid": file}
		for name, path := range s.Paths {
			paths[name] = path
		}
		s.Paths = paths
	})
}

func (p *Pods) endHolder(ctx context.Context, pod *pod) error {
	if err := p.opt.mounts.unmount(filepath.Join(p.podDir(pod.id), "pid")); err != nil {
		return err
	}
	if err := p.opt.Processes.Remove(ctx, pod.id); err != nil {
		return err
	}
	return pod.amend(func(s *podState) { s.HolderPid = 0 })
}

// kernelMounts is mounts for real.
type kernelMounts struct{}

func (kernelMounts) shm(dir, options string) error {
	if err := os.Mkdir(dir, 0o777); err != nil {
		return err
	}
	err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options)
	if err != nil {
		return fault.New(fault.Internal, "", "mount tmpfs at %s: %w", dir, err)
	}
	return nil
}

func (kernelMounts) attach(t idmap.Tree, at string) error { return t.Attach(at) }

func (kernelMounts) detach(dir string) error { return idmap.DetachAll(dir) }

func (kernelMounts) pin(pid int, file string) error {
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return err
	}
	ns := fmt.Sprintf("/proc/%d/ns/pid", pid)
	if err := unix.Mount(ns, file, "", unix.MS_BIND, ""); err != nil {
		return fault.New(fault.Internal, "", "bind %s to %s: %w", ns, file, err)
	}
	return nil
}

func (kernelMounts) unmount(path string) error { return idmap.Detach(path) }
