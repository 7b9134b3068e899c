package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/davit-runtime/davit/internal/proc"
)

// process returns the node's kubelet, or the k3s that it is in.
func process(root string) (p proc.Process, k3s, running bool) {
	found := proc.Find(root, func(p proc.Process) bool {
		return p.Name() == "kubelet" || p.Name() == "hyperkube" && len(p.Args) > 1 && p.Args[1] == "kubelet" || isK3s(p)
	})
	if len(found) == 0 {
		return p, false, false
	}
	return found[0], isK3s(found[0]), true
}

// isK3s reports whether this is k3s itself. It hides its flags, which may be
// secrets, by writing "k3s server" over them.
func isK3s(p proc.Process) bool {
	all := strings.Fields(strings.Join(p.Args, " "))
	return (p.Name() == "k3s" || strings.HasPrefix(p.Name(), "k3s ")) && len(all) > 1 && (all[1] == "server" || all[1] == "agent")
}

// What k3s uses unless told otherwise, and where it is told.
// k3s: pkg/daemons/agent/agent_linux.go.
const (
	k3sSocket  = "unix:///run/k3s/containerd/containerd.sock"
	k3sConfig  = "/etc/rancher/k3s/config.yaml"
	k3sDropIns = "/var/lib/rancher/k3s/agent/etc/kubelet.conf.d"
)

// takeK3s reads what k3s hands to its kubelet: its configuration file, then the
// flags of its unit, which win.
func (c *Config) takeK3s(root string) {
	c.flags["containerRuntimeEndpoint"] = Value{k3sSocket, "k3s's own containerd"}
	if _, err := os.Stat(filepath.Join(root, k3sDropIns)); err == nil {
		c.flags["configDir"] = Value{k3sDropIns, "k3s"}
	} else { // before 1.32 they were flags
		c.flags["failSwapOn"] = Value{"false", "k3s"}
		c.flags["evictionHard"] = Value{"imagefs.available<5%,nodefs.available<5%", "k3s"}
	}
	files, _ := filepath.Glob(filepath.Join(root, k3sConfig+".d/*.yaml"))
	for _, file := range append([]string{filepath.Join(root, k3sConfig)}, files...) {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		fields := map[string]any{}
		path := "/" + strings.TrimPrefix(strings.TrimPrefix(file, filepath.Clean(root)), "/")
		if err := yaml.Unmarshal(data, &fields); err != nil {
			c.Faults = append(c.Faults, fmt.Errorf("%s: not YAML: %w", path, err))
			continue
		}
		for _, name := range []string{"container-runtime-endpoint", "image-service-endpoint"} {
			if v, ok := fields[name].(string); ok {
				c.flags[fieldOf(name)] = Value{v, path}.withScheme()
			}
		}
		switch more := fields["kubelet-arg"].(type) {
		case string:
			c.takeFlags([]string{"--" + more}, path)
		case []any:
			for _, v := range more {
				c.takeFlags([]string{fmt.Sprint("--", v)}, path)
			}
		}
	}
	for _, unit := range []string{"k3s.service", "k3s-agent.service"} {
		path := "/etc/systemd/system/" + unit
		data, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			continue
		}
		c.takeK3sFlags(execStart(string(data)), path)
	}
}

func (c *Config) takeK3sFlags(args []string, from string) {
	flags := Config{flags: map[string]Value{}}
	for i, a := range args {
		a = strings.TrimPrefix(a, "--kubelet-arg=")
		switch {
		case a != args[i]:
			c.takeFlags([]string{"--" + a}, from)
		case args[i] == "--kubelet-arg" && i+1 < len(args):
			c.takeFlags([]string{"--" + args[i+1]}, from)
		}
	}
	flags.takeFlags(args, from)
	for _, name := range []string{"containerRuntimeEndpoint", "imageServiceEndpoint"} {
		if v, ok := flags.flags[name]; ok {
			c.flags[name] = v.withScheme()
		}
	}
}

// withScheme returns an endpoint as k3s passes it on.
// k3s: pkg/daemons/agent, socketPrefix.
func (v Value) withScheme() Value {
	if v.Text != "" && !strings.HasPrefix(v.Text, "unix://") {
		v.Text = "unix://" + v.Text
	}
	return v
}

// execStart returns the words of a unit's command, which may go over several
// lines. systemd: systemd.service(5), ExecStart.
func execStart(unit string) []string {
	unit = strings.ReplaceAll(unit, "\\\n", " ")
	for line := range strings.Lines(unit) {
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecStart="); ok {
			return words(command)
		}
	}
	return nil
}
