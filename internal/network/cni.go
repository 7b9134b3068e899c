package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/span"
)

// plugins runs CNI plugins.
type plugins struct {
	config atomic.Pointer[cniConfig]
	cache  string // of libcni: the results of ADD, which DEL and CHECK hand on
}

func (p *plugins) cni() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(p.config.Load().pluginDirs, p.cache, &runner{})
}

// attachPlugins is Attach by CNI.
func (n *Network) attachPlugins(ctx context.Context, p Pod, c *choice) (Result, error) {
	const op = "network.Attach"
	told, err := capabilities(p)
	if err != nil {
		return Result{}, fault.New(fault.Invalid, op, "%w", err)
	}
	l := newLease(p, driverCNI)
	l.List, l.Capabilities = c.raw, told
	end := span.Step(ctx, "lease")
	l, err = n.leases.take(l)
	end()
	if err != nil {
		return Result{}, err
	}
	end = span.Step(ctx, "cni add")
	result, err := n.plugins.cni().AddNetworkList(ctx, c.list, l.runtimeConf(l.NetNS))
	end()
	if err != nil {
		return Result{}, pluginError(ctx, op, c.list.Name, err)
	}
	raw, err := json.Marshal(result)
	if err != nil {
		return Result{}, fault.New(fault.Internal, op, "%w", err)
	}
	addrs, err := addresses(result, podInterface)
	if err != nil {
		return Result{}, fault.New(fault.Unavailable, op, "CNI network %s: %w", c.list.Name, err)
	}
	return Result{Driver: driverCNI, Interface: podInterface, Addrs: addrs, Raw: raw}, nil
}

// capabilities returns what plugins that ask for it are told of the pod.
//
// CNI: CONVENTIONS.md, "Dynamic plugin specific fields".
func capabilities(p Pod) (map[string]any, error) {
	out := map[string]any{}
	var mappings []map[string]any
	for _, port := range p.Ports {
		m := map[string]any{"hostPort": port.HostPort, "containerPort": port.ContainerPort, "protocol": port.Protocol}
		if port.HostIP.IsValid() {
			m["hostIP"] = port.HostIP.String()
		}
		mappings = append(mappings, m)
	}
	if len(mappings) > 0 {
		out["portMappings"] = mappings
	}
	if p.CgroupParent != "" {
		out["cgroupPath"] = p.CgroupParent
	}
	limits := map[string]any{}
	for _, way := range []string{"ingress", "egress"} {
		text, ok := p.Annotations["kubernetes.io/"+way+"-bandwidth"]
		if !ok {
			continue
		}
		q, err := resource.ParseQuantity(text)
		if err != nil || q.Sign() <= 0 {
			return nil, fmt.Errorf("annotation kubernetes.io/%s-bandwidth: %q is no bandwidth", way, text)
		}
		limits[way+"Rate"], limits[way+"Burst"] = q.Value(), math.MaxInt32 // bits a second, bits
	}
	if len(limits) > 0 {
		out["bandwidth"] = limits
	}
	return out, nil
}

// runtimeConf is the same for ADD, CHECK and DEL, but for the namespace, which
// may be gone at DEL.
func (l *lease) runtimeConf(netns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: l.Pod,
		NetNS:       netns,
		IfName:      l.Interface,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", l.Namespace},
			{"K8S_POD_NAME", l.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", l.Pod},
			{"K8S_POD_UID", l.UID},
		},
		CapabilityArgs: l.Capabilities,
	}
}

// del undoes an ADD, whole or in part, from the lease alone.
func (p *plugins) del(ctx context.Context, l *lease) error {
	const op = "network.Detach"
	list, err := libcni.NetworkConfFromBytes(l.List)
	if err != nil {
		return fault.New(fault.Internal, op, "CNI configuration in the lease of pod %s: %w", l.Pod, err)
	}
	netns := l.NetNS
	var fs unix.Statfs_t
	if err := unix.Statfs(netns, &fs); err != nil || fs.Type != unix.NSFS_MAGIC {
		netns = "" // gone, or after a reboot a plain file. CNI: SPEC.md, "CNI_NETNS"
	}
	defer span.Step(ctx, "cni del")()
	if err := p.cni().DelNetworkList(ctx, list, l.runtimeConf(netns)); err != nil {
		return pluginError(ctx, op, list.Name, err)
	}
	return nil
}

func (p *plugins) check(ctx context.Context, l *lease) error {
	const op = "network.Check"
	list, err := libcni.NetworkConfFromBytes(l.List)
	if err != nil {
		return fault.New(fault.Internal, op, "CNI configuration in the lease of pod %s: %w", l.Pod, err)
	}
	err = p.cni().CheckNetworkList(ctx, list, l.runtimeConf(l.NetNS))
	if err == nil || errors.Is(err, libcni.ErrorCheckNotSupp) {
		return nil
	}
	return pluginError(ctx, op, list.Name, err)
}

// collect tells the plugins which pods are left, where they can listen.
func (p *plugins) collect(ctx context.Context, c *choice, live []string) error {
	if c.list == nil {
		return nil
	}
	if ok, _ := version.GreaterThanOrEqualTo(c.list.CNIVersion, "1.1.0"); !ok {
		return nil
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, pod := range live {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: pod, IfName: podInterface})
	}
	if err := p.cni().GCNetworkList(ctx, c.list, args); err != nil {
		return pluginError(ctx, "network.Collect", c.list.Name, err)
	}
	return nil
}

// statusLimit is how long plugins may take to say how they are.
const statusLimit = 5 * time.Second

// askPlugins notes what the plugins say of their readiness.
func (n *Network) askPlugins(ctx context.Context) {
	c := n.choice.Load()
	if c.list == nil {
		return
	}
	limited, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	err := n.plugins.cni().GetStatusNetworkList(limited, c.list)
	if ctx.Err() != nil {
		return // the end of Run, not of the plugins
	}
	if err != nil {
		err = pluginError(limited, "", c.list.Name, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.status, n.asked = err, c
}

// pluginError gives a plugin's failure a kind. The text that libcni makes
// names the plugin.
func pluginError(ctx context.Context, op, network string, err error) error {
	kind := fault.Unavailable
	if ctx.Err() != nil {
		kind = fault.KindOf(ctx.Err())
	}
	return fault.New(kind, op, "CNI network %s: %w", network, err)
}

// addresses returns the pod's addresses in a CNI result: those of the
// interface named inside the pod, in the order given.
func addresses(result types.Result, name string) ([]netip.Addr, error) {
	r, err := types100.GetResult(result)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, ip := range r.IPs {
		if ip == nil {
			continue
		}
		if i := ip.Interface; i != nil && len(r.Interfaces) > 0 {
			if *i < 0 || *i >= len(r.Interfaces) || r.Interfaces[*i] == nil {
				return nil, fmt.Errorf("result: address %s is on interface %d of %d", ip.Address.IP, *i, len(r.Interfaces))
			}
			if in := r.Interfaces[*i]; in.Name != name || in.Sandbox == "" {
				continue
			}
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			out = append(out, a.Unmap())
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("result: no address for %s", name)
	}
	return out, nil
}

func route(dst net.IPNet, gw net.IP) *types.Route { return &types.Route{Dst: dst, GW: gw} }

// A runner executes plugins, as libcni's own does, but kills a plugin together
// with what it started when the context ends, and when davitd dies: a DEL
// after the restart must not meet an ADD still under way.
type runner struct{ version.PluginDecoder }

// ExecPlugin implements invoke.Exec.
func (*runner) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) (result []byte, err error) {
	line, said := []string{path}, []byte(nil)
	for _, v := range environ {
		if command, ok := strings.CutPrefix(v, "CNI_COMMAND="); ok {
			line = []string{v, path}
			end := span.Command(ctx, "cni "+strings.ToLower(command)+": "+filepath.Base(path), v+" "+path)
			defer func() { end(err, said) }()
		}
	}
	// Pdeathsig follows the thread that forks, which somebody else might end.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for try := 0; ; try++ {
		var stdout, stderr bytes.Buffer
		c := exec.CommandContext(ctx, path)
		c.Env, c.Stdin, c.Stdout, c.Stderr = environ, bytes.NewReader(stdin), &stdout, &stderr
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		c.Cancel = func() error { return unix.Kill(-c.Process.Pid, unix.SIGKILL) }
		c.WaitDelay = time.Second
		err := c.Run()
		switch {
		case err == nil:
			said = stderr.Bytes()
			return stdout.Bytes(), nil
		case errors.Is(err, unix.ETXTBSY) && try < 5: // the plugin is just being installed
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
				continue
			}
		}
		if ctx.Err() != nil {
			return nil, fault.Ran(fmt.Errorf("killed: %w", ctx.Err()), line, stderr.Bytes(), stdout.Bytes())
		}
		return nil, fault.Ran(pluginMessage(filepath.Base(path), err, stdout.Bytes(), stderr.Bytes()), line, stderr.Bytes(), stdout.Bytes())
	}
}

// pluginMessage returns what a plugin that failed has said.
//
// CNI: SPEC.md, "Error".
func pluginMessage(name string, err error, stdout, stderr []byte) error {
	var said types.Error
	if json.Unmarshal(stdout, &said) == nil && (said.Msg != "" || said.Details != "") {
		if said.Msg == "" {
			return fmt.Errorf("CNI plugin %s: %s", name, said.Details)
		}
		return fmt.Errorf("CNI plugin %s: %w", name, &said)
	}
	text := strings.TrimSpace(string(stderr))
	if text == "" {
		text = strings.TrimSpace(string(stdout))
	}
	const most = 1000
	if len(text) > most {
		text = text[:most] + " ..."
	}
	return fmt.Errorf("CNI plugin %s: %w: %s", name, err, text)
}

// FindInPath implements invoke.Exec.
func (*runner) FindInPath(plugin string, dirs []string) (string, error) {
	return invoke.FindInPath(plugin, dirs)
}

// findPlugin returns an error unless one of dirs has the plugin, executable.
func findPlugin(plugin string, dirs []string) error {
	path, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return fmt.Errorf("plugin %q is in none of %s", plugin, strings.Join(dirs, ", "))
	}
	if info, err := os.Stat(path); err != nil || info.Mode()&0o111 == 0 {
		return fmt.Errorf("plugin %s is not executable", path)
	}
	return nil
}
