package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// A proc is the process that is the node's kubelet.
type proc struct {
	pid     int
	program string
	args    []string
	k3s     bool
}

// process finds the kubelet that runs on the node. One in a PID or mount
// namespace of its own belongs to another node, as those of kind do.
func process(root string) (proc, bool) {
	dirs, _ := filepath.Glob(filepath.Join(root, "proc/[0-9]*"))
	var found []proc
	for _, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(data) == 0 {
			continue
		}
		args := strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
		p := proc{args: args[1:]}
		switch name := filepath.Base(args[0]); {
		case name == "kubelet":
		case name == "hyperkube" && len(p.args) > 0 && p.args[0] == "kubelet":
		case (name == "k3s" || strings.HasPrefix(name, "k3s ")) && isK3s(args):
			p.k3s = true
		default:
			continue
		}
		if status := filepath.Join(dir, "status"); nested(status) || !Trusted(status) || apart(root, dir) {
			continue
		}
		p.pid, _ = strconv.Atoi(filepath.Base(dir))
		p.program, _ = os.Readlink(filepath.Join(dir, "exe")) // root's to see
		found = append(found, p)
	}
	if len(found) == 0 {
		return proc{}, false
	}
	slices.SortFunc(found, func(a, b proc) int { return a.pid - b.pid })
	return found[0], true
}

// Trusted reports, by its status file in /proc, whether a process is root's or
// the caller's own: of the name that anybody may give to a process nothing
// follows. kernel: proc_pid_status(5), Uid.
func Trusted(status string) bool {
	data, _ := os.ReadFile(status)
	for line := range strings.Lines(string(data)) {
		if ids, ok := strings.CutPrefix(line, "Uid:"); ok {
			f := strings.Fields(ids)
			return len(f) > 1 && (f[1] == "0" || f[1] == strconv.Itoa(os.Getuid()))
		}
	}
	return true
}

// apart reports whether a process is in another mount namespace; false where
// that cannot be seen.
func apart(root, dir string) bool {
	ours, err := os.Readlink(filepath.Join(root, "proc/self/ns/mnt"))
	its, itsErr := os.Readlink(filepath.Join(dir, "ns/mnt"))
	return err == nil && itsErr == nil && ours != its
}

// isK3s reports whether this is k3s itself. It hides its flags, which may be
// secrets, by writing "k3s server" over them.
func isK3s(args []string) bool {
	all := strings.Fields(strings.Join(args, " "))
	return len(all) > 1 && (all[1] == "server" || all[1] == "agent")
}

// nested reports whether a process has a PID in more than one namespace.
// kernel: proc_pid_status(5), NSpid.
func nested(status string) bool {
	data, _ := os.ReadFile(status)
	for line := range strings.Lines(string(data)) {
		if pids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			return len(strings.Fields(pids)) > 1
		}
	}
	return false
}

// What k3s uses unless told otherwise, and where it is told.
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
				c.flags[fieldOf(name)] = Value{v, path}
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
			c.flags[name] = v
		}
	}
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
