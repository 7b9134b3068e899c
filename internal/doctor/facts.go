package doctor

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/davit-runtime/davit/internal/endpoint"
	"github.com/davit-runtime/davit/internal/kubelet"
	"github.com/davit-runtime/davit/internal/proc"
)

// facts are what several checks need, each read once, by who needs it first.
type facts struct {
	*Node
	ctx context.Context

	kubelet        func() *kubelet.Config // nil: there is none
	kubeletVersion func() version         // zero: unknown
	mounts         func() []mount
	processes      func() []process
	davit          func() davit
	endpoint       func() Endpoint
	images         func() Endpoint // the same where images are with the runtime
	crictl         func() (endpoint.Crictl, error)
	answer         func() Answer
	kernelConfig   func() map[string]string // by option; nil: unknown
	modules        func() *moduleFolder
	cni            func() cniFolder
	cgroups        func() cgroups
}

func (n *Node) facts(ctx context.Context) *facts {
	f := &facts{Node: n, ctx: ctx}
	f.kubelet = sync.OnceValue(func() *kubelet.Config { return kubelet.Find(n.Root) })
	f.kubeletVersion = sync.OnceValue(f.readKubeletVersion)
	f.mounts = sync.OnceValue(func() []mount { return f.readMounts("/proc/self/mountinfo") })
	f.processes = sync.OnceValue(f.readProcesses)
	f.davit = sync.OnceValue(f.readDavit)
	f.endpoint = sync.OnceValue(f.chooseEndpoint)
	f.images = sync.OnceValue(f.chooseImages)
	f.crictl = sync.OnceValues(func() (endpoint.Crictl, error) { return endpoint.ReadCrictl(n.Root, n.Given.Crictl) })
	f.answer = sync.OnceValue(func() Answer {
		ctx, cancel := context.WithTimeout(ctx, askLimit)
		defer cancel()
		return n.Ask(ctx, f.endpoint().Address, f.images().Address)
	})
	f.kernelConfig = sync.OnceValue(f.readKernelConfig)
	f.modules = sync.OnceValue(f.readModules)
	f.cni = sync.OnceValue(f.readCNI)
	f.cgroups = sync.OnceValue(f.readCgroups)
	return f
}

// at returns where a file of the node is.
func (n *Node) at(path string) string { return filepath.Join(n.Root, path) }

func (n *Node) read(path string) ([]byte, error) { return os.ReadFile(n.at(path)) }

// text is a small file's content without the space around it; empty if it
// cannot be read.
func (n *Node) text(path string) string {
	data, _ := n.read(path)
	return strings.TrimSpace(string(data))
}

// number is a file's number, false if there is none.
func (n *Node) number(path string) (int64, bool) {
	v, err := strconv.ParseInt(n.text(path), 10, 64)
	return v, err == nil
}

func (n *Node) exists(path string) bool {
	_, err := os.Stat(n.at(path))
	return err == nil
}

// glob returns the node's paths that match.
func (n *Node) glob(pattern string) []string {
	found, _ := filepath.Glob(n.at(pattern))
	for i, path := range found {
		found[i] = "/" + strings.TrimPrefix(strings.TrimPrefix(path, filepath.Clean(n.Root)), "/")
	}
	return found
}

// find returns the path of a program: name itself if it is absolute. It returns
// an empty path if there is none, and false if it is there but cannot be run.
func (n *Node) find(name string, dirs []string) (path string, runs bool) {
	var tried []string
	if filepath.IsAbs(name) {
		tried = []string{name}
	} else {
		for _, dir := range dirs {
			tried = append(tried, filepath.Join("/", dir, name))
		}
	}
	there := ""
	for _, path := range tried {
		info, err := os.Stat(n.at(path))
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		if info.Mode()&0o111 != 0 {
			return path, true
		}
		there = cmp.Or(there, path)
	}
	return there, false
}

// A version has the numbers that a text starts with, "v1.37.1-rc" too.
type version struct{ major, minor int }

func parseVersion(text string) version {
	text = strings.TrimPrefix(strings.TrimSpace(text), "v")
	major, rest, _ := strings.Cut(text, ".")
	digits := func(s string) int {
		end := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
		if end >= 0 {
			s = s[:end]
		}
		n, _ := strconv.Atoi(s)
		return n
	}
	return version{digits(major), digits(rest)}
}

func (v version) known() bool { return v != version{} }

func (v version) atLeast(major, minor int) bool {
	return v.major > major || v.major == major && v.minor >= minor
}

func (f *facts) readKubeletVersion() version {
	program := ""
	if k := f.kubelet(); k != nil {
		program = k.Program
	}
	if name := filepath.Base(program); name != "kubelet" && name != "k3s" {
		program, _ = f.find("kubelet", f.Path)
	}
	if program == "" {
		return version{}
	}
	out, _ := f.Run(f.ctx, nil, program, "--version")
	_, number, _ := strings.Cut(out, " v") // "Kubernetes v1.37.1", "k3s version v1.37.1+k3s1 (…)"
	return parseVersion(number)
}

// A mount is a line of a mount table.
type mount struct {
	point, fsType string
	root          string // of the file system, what is mounted
	options       []string
	super         []string // the file system's own options
	shared        bool
}

// kernel: proc_pid_mountinfo(5).
func (n *Node) readMounts(table string) []mount {
	data, _ := n.read(table)
	var all []mount
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(data)) {
		before, after, ok := strings.Cut(line, " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(head) < 6 || len(tail) < 3 {
			continue
		}
		m := mount{
			point: unescape.Replace(head[4]), root: unescape.Replace(head[3]), fsType: tail[0],
			options: strings.Split(head[5], ","), super: strings.Split(tail[2], ","),
		}
		m.shared = slices.ContainsFunc(head[6:], func(tag string) bool { return strings.HasPrefix(tag, "shared:") })
		all = append(all, m)
	}
	return all
}

// mountOf returns the mount that path is on, false if the table is unknown.
func mountOf(table []mount, path string) (best mount, ok bool) {
	for _, m := range table {
		prefix := strings.TrimSuffix(m.point, "/") + "/"
		if strings.HasPrefix(filepath.Clean(path)+"/", prefix) && len(m.point) >= len(best.point) {
			best, ok = m, true // the later one is on top
		}
	}
	return best, ok
}

// A process is one of davit's.
type process struct{ proc.Process }

// value returns the value of a flag, in any form that package flag takes.
func (p process) value(flag string) string {
	for i, a := range p.Args {
		name, value, has := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(a, "-"), "-"), "=")
		switch {
		case name != flag || a == flag:
		case has:
			return value
		case i+1 < len(p.Args):
			return p.Args[i+1]
		}
	}
	return ""
}

// readProcesses returns davit's daemons.
func (f *facts) readProcesses() []process {
	var all []process
	for _, p := range proc.Find(f.Root, func(p proc.Process) bool { return p.Name() == "davitd" || p.Name() == "davit-monitor" }) {
		all = append(all, process{p})
	}
	return all
}

// readKernelConfig reads what the kernel was built with.
func (f *facts) readKernelConfig() map[string]string {
	release := f.text("/proc/sys/kernel/osrelease")
	var from io.Reader
	for _, path := range []string{"/proc/config.gz", "/boot/config-" + release, "/lib/modules/" + release + "/config"} {
		file, err := os.Open(f.at(path))
		if err != nil {
			continue
		}
		defer file.Close()
		from = file
		if filepath.Ext(path) == ".gz" {
			if from, err = gzip.NewReader(file); err != nil {
				continue
			}
		}
		break
	}
	if from == nil {
		return nil
	}
	config := map[string]string{}
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), "="); ok {
			config[strings.TrimPrefix(name, "CONFIG_")] = value
		}
	}
	return config
}

// moduleFolder is what /lib/modules has for the kernel that runs.
type moduleFolder struct {
	known             bool
	builtin, loadable map[string]bool
}

func (f *facts) readModules() *moduleFolder {
	dir := "/lib/modules/" + f.text("/proc/sys/kernel/osrelease")
	m := &moduleFolder{builtin: map[string]bool{}, loadable: map[string]bool{}}
	dep, err := f.read(dir + "/modules.dep")
	if err != nil {
		return m
	}
	m.known = true
	builtin, _ := f.read(dir + "/modules.builtin")
	for line := range strings.Lines(string(builtin)) {
		m.builtin[moduleName(line)] = true
	}
	for line := range strings.Lines(string(dep)) {
		path, _, _ := strings.Cut(line, ":")
		m.loadable[moduleName(path)] = true
	}
	return m
}

func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(strings.TrimSpace(path)), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// davit is what davitd is configured with. Its JSON is that of davitd --check.
type davit struct {
	program string // davitd's; empty: it is not installed
	err     error  // the configuration is not usable, in davitd's words
	running *process

	sockets
	Root           string            `json:"root"`
	State          string            `json:"state"`
	DefaultRuntime string            `json:"defaultRuntime"`
	Runtimes       map[string]string `json:"runtimes"` // paths by handler
	CNIConfDir     string            `json:"cniConfDir"`
	CNIBinDirs     []string          `json:"cniBinDirs"`
	Bridge         string            `json:"bridge"`
	Subnets        []string          `json:"subnets"`
	CertFile       string            `json:"certFile"`
	KeyFile        string            `json:"keyFile"`
	CDISpecDirs    []string          `json:"cdiSpecDirs"`
}

// sockets are what davitd serves.
type sockets struct {
	Socket         string  `json:"socket"`
	CadvisorSocket *string `json:"cadvisorSocket"` // nil: the configuration says nothing of it
}

// here reports whether davit is installed on the node, or runs there.
func (d davit) here() bool { return d.program != "" || d.running != nil }

// chooseDavitd returns the davitd that runs: of several the one whose socket is
// named or the kubelet's, else the one of the usual directories, else any.
func (f *facts) chooseDavitd() *process {
	named := f.namedEndpoint().path()
	var best *process
	rank := 0
	for _, p := range f.processes() {
		if p.Name() != "davitd" {
			continue
		}
		socket := cmp.Or(p.value("socket"), filepath.Join(cmp.Or(p.value("state"), "/run/davit"), "davit.sock"))
		r := 1
		if sameSocket(socket, endpoint.Davit) {
			r = 2
		}
		if sameSocket(socket, named) {
			r = 3
		}
		if r > rank {
			best, rank = &p, r
		}
	}
	return best
}

// readDavit asks davitd for its configuration, with the flags of the one that runs.
func (f *facts) readDavit() davit {
	d := davit{running: f.chooseDavitd()}
	var args []string
	if d.running != nil {
		args = d.running.Args[1:]
	}
	if d.running != nil {
		exe, _ := os.Readlink(f.at(d.running.Path("exe"))) // root's to see
		d.program = strings.TrimSuffix(exe, " (deleted)")
	}
	if d.program == "" || !f.exists(d.program) {
		d.program, _ = f.find("davitd", append([]string{filepath.Dir(f.Program)}, f.Path...))
	}
	if d.program != "" {
		var out string
		if out, d.err = f.Run(f.ctx, nil, d.program, append(slices.Clone(args), "--check")...); d.err == nil {
			d.err = json.Unmarshal([]byte(out), &d)
		}
	}
	d.Root = cmp.Or(d.Root, "/var/lib/davit")
	d.State = cmp.Or(d.State, "/run/davit")
	d.Socket = cmp.Or(d.Socket, filepath.Join(d.State, "davit.sock"))
	d.CNIConfDir = cmp.Or(d.CNIConfDir, "/etc/cni/net.d")
	d.Bridge = cmp.Or(d.Bridge, "davit0")
	if len(d.CNIBinDirs) == 0 {
		d.CNIBinDirs = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}
	}
	if len(d.CDISpecDirs) == 0 {
		d.CDISpecDirs = []string{"/etc/cdi", "/var/run/cdi"}
	}
	return d
}
