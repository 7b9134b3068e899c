// Package kubelet reads how this node's kubelet is set up: the command line of
// the one that runs, or, while none does, the files that its service is started
// with; its configuration file and the drop-ins beside it. k3s, whose kubelet is
// no process of its own, is read from its unit and configuration.
//
// It only reads files below a root directory. It talks to nobody, changes
// nothing, and knows no default of the kubelet's: what nobody wrote is absent.
package kubelet

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

const (
	defaultFile = "/var/lib/kubelet/config.yaml" // kubeadm's; kubelet packages start it with that one
	dropInExt   = ".conf"
)

// A Config is what is known of a kubelet's settings. It does not change.
type Config struct {
	Pid     int      // of the running kubelet, or of k3s; 0 if none runs
	Program string   // path of its program; empty if none runs, or it is not ours to see
	Dir     string   // where it keeps its own state: --root-dir
	Files   []string // configuration files that were read, in order; later ones win
	Faults  []error  // files that should be there and cannot be read, or are not what they should be

	flags map[string]Value // by KubeletConfiguration's name for them
	file  map[string]any
	from  map[string]string // of file's fields: which one
}

// A Value is one setting and where it stands.
type Value struct {
	Text string // as written; "true" and "false" for switches
	From string // the file, or the flag and whose it is
}

// Find reads the settings of the kubelet of the node whose files are below
// root, "/" for this one. It returns nil if no kubelet runs and none has been
// set up here.
func Find(root string) *Config {
	c := &Config{Dir: "/var/lib/kubelet", flags: map[string]Value{}, file: map[string]any{}, from: map[string]string{}}
	p, k3s, running := process(root)
	if running {
		c.Pid = p.Pid
		c.Program, _ = os.Readlink(filepath.Join(root, p.Path("exe"))) // root's to see
	}
	switch {
	case k3s:
		c.takeK3s(root)
	case running:
		c.takeFlags(p.Args[1:], "the running kubelet's flag")
	case !c.takeEnvironment(root):
		return nil
	}
	if v, ok := c.flags["rootDir"]; ok {
		c.Dir = v.Text
	}
	c.takeFiles(root, running)
	return c
}

// Value returns the setting that KubeletConfiguration calls name, as
// "cgroupDriver", whether a flag or a file has it. A flag wins over files.
func (c *Config) Value(name string) (Value, bool) {
	if v, ok := c.flags[name]; ok {
		return v, true
	}
	raw, ok := c.file[name]
	if !ok || raw == nil {
		return Value{}, false
	}
	v := Value{From: c.from[name]}
	switch raw := raw.(type) {
	case string:
		v.Text = raw
	case float64:
		v.Text = strconv.FormatFloat(raw, 'f', -1, 64)
	default:
		v.Text = fmt.Sprint(raw)
	}
	return v, v.Text != ""
}

// Switch returns a setting that is true or false; def where nobody wrote it.
func (c *Config) Switch(name string, def bool) bool {
	v, ok := c.Value(name)
	if !ok {
		return def
	}
	on, err := strconv.ParseBool(v.Text)
	return on && err == nil
}

// Endpoint returns the runtime's endpoint, and ImageEndpoint that of images if
// it is another.
func (c *Config) Endpoint() (Value, bool) { return c.Value("containerRuntimeEndpoint") }

// ImageEndpoint returns the endpoint of the image service where one was set.
func (c *Config) ImageEndpoint() (Value, bool) { return c.Value("imageServiceEndpoint") }

// Gate returns whether a feature gate was set, and to what.
func (c *Config) Gate(name string) (on, set bool) {
	if v, ok := c.flags["featureGates"]; ok {
		for part := range strings.SplitSeq(v.Text, ",") {
			if gate, value, _ := strings.Cut(part, "="); gate == name {
				on, set = value == "true", true
			}
		}
		if set {
			return on, set
		}
	}
	gates, _ := c.file["featureGates"].(map[string]any)
	on, set = gates[name].(bool)
	return on, set
}

// Percent returns a percentage of a map such as evictionHard; def where nobody
// wrote one, and also where it is written as a quantity.
func (c *Config) Percent(field, key string, def float64) float64 {
	text := ""
	if m, ok := c.file[field].(map[string]any); ok {
		text, _ = m[key].(string)
	}
	if v, ok := c.flags[field]; ok {
		for part := range strings.SplitSeq(v.Text, ",") {
			if k, value, _ := strings.Cut(part, "<"); k == key {
				text = value
			}
		}
	}
	number, isPercent := strings.CutSuffix(text, "%")
	f, err := strconv.ParseFloat(number, 64)
	if !isPercent || err != nil {
		return def
	}
	return f
}

// takeFlags reads a command line without the program's name.
//
// kubelet: flags are "--name=value" or "--name value", with "_" for "-" too.
func (c *Config) takeFlags(args []string, whose string) {
	for i := 0; i < len(args); i++ {
		name, found := strings.CutPrefix(args[i], "-")
		if !found {
			continue
		}
		name, value, hasValue := strings.Cut(strings.TrimPrefix(name, "-"), "=")
		name = strings.ReplaceAll(name, "_", "-")
		if !hasValue {
			value = "true"
			if i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
				i++
				value = args[i]
			}
		}
		c.flags[fieldOf(name)] = Value{Text: value, From: whose + " --" + name}
	}
}

// renamed are the flags whose fields have other names.
var renamed = map[string]string{"resolv-conf": "resolvConf", "hostname-override": "hostnameOverride", "node-ip": "nodeIP"}

// fieldOf returns KubeletConfiguration's name for a flag: camelCase, almost always.
func fieldOf(flag string) string {
	if name, ok := renamed[flag]; ok {
		return name
	}
	words := strings.Split(flag, "-")
	for i, w := range words[1:] {
		if w != "" {
			words[i+1] = strings.ToUpper(w[:1]) + w[1:]
		}
	}
	return strings.Join(words, "")
}

// takeFiles reads the configuration file and the drop-ins beside it.
//
// kubelet: a drop-in ends in .conf and is merged over what came before as a
// JSON merge patch (RFC 7386), in lexical order.
func (c *Config) takeFiles(root string, running bool) {
	path := c.flags["config"].Text
	if path == "" && !running {
		if _, err := os.Stat(filepath.Join(root, defaultFile)); err == nil {
			path = defaultFile
		}
	}
	if path != "" {
		c.takeFile(root, c.absolute(root, path))
	}
	dir := c.flags["configDir"].Text
	if dir == "" {
		return
	}
	var dropIns []string
	err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Ext(path) == dropInExt {
			dropIns = append(dropIns, path)
		}
		return err
	})
	if err != nil {
		c.Faults = append(c.Faults, fmt.Errorf("drop-in folder %s: %w", dir, err))
	}
	for _, path := range dropIns {
		c.takeFile(root, "/"+strings.TrimPrefix(strings.TrimPrefix(path, filepath.Clean(root)), "/"))
	}
}

// absolute resolves a path that is relative to where the kubelet was started.
func (c *Config) absolute(root, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	cwd, _ := os.Readlink(filepath.Join(root, "proc", strconv.Itoa(c.Pid), "cwd"))
	return filepath.Join("/", cwd, path)
}

func (c *Config) takeFile(root, path string) {
	data, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		var at *fs.PathError
		if errors.As(err, &at) {
			err = at.Err
		}
		c.Faults = append(c.Faults, fmt.Errorf("%s: %w", path, err))
		return
	}
	var fields map[string]any
	if err := yaml.Unmarshal(data, &fields); err != nil {
		c.Faults = append(c.Faults, fmt.Errorf("%s: not YAML: %w", path, err))
		return
	}
	if kind, _ := fields["kind"].(string); kind != "KubeletConfiguration" {
		c.Faults = append(c.Faults, fmt.Errorf("%s: kind is %q, not KubeletConfiguration", path, kind))
		return
	}
	c.Files = append(c.Files, path)
	for name := range fields {
		c.from[name] = path
	}
	merge(c.file, fields)
}

// merge puts patch over base. RFC 7386, section 2.
func merge(base, patch map[string]any) {
	for key, value := range patch {
		if value == nil {
			delete(base, key)
			continue
		}
		inner, isMap := value.(map[string]any)
		if !isMap {
			base[key] = value
			continue
		}
		under, _ := base[key].(map[string]any)
		if under = maps.Clone(under); under == nil {
			under = map[string]any{}
		}
		merge(under, inner)
		base[key] = under
	}
}

// takeEnvironment reads the files that a kubelet's service is started with. It
// reports whether there is any sign of a kubelet.
//
// kubeadm: 10-kubeadm.conf, EnvironmentFile.
func (c *Config) takeEnvironment(root string) (found bool) {
	for _, at := range []struct{ path, variable string }{
		{"/var/lib/kubelet/kubeadm-flags.env", "KUBELET_KUBEADM_ARGS"},
		{"/etc/default/kubelet", "KUBELET_EXTRA_ARGS"},
		{"/etc/sysconfig/kubelet", "KUBELET_EXTRA_ARGS"},
	} {
		data, err := os.ReadFile(filepath.Join(root, at.path))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), at.variable+"="); ok {
				args := words(strings.Trim(value, `"'`))
				found = found || len(args) > 0
				c.takeFlags(args, at.path)
			}
		}
	}
	_, err := os.Stat(filepath.Join(root, defaultFile))
	return found || err == nil
}

// words splits as systemd and shells do, quotes respected.
func words(line string) []string {
	var out []string
	var quote rune
	word := strings.FieldsFunc(line, func(r rune) bool {
		switch {
		case quote != 0:
			if r == quote {
				quote = 0
			}
			return false
		case r == '"' || r == '\'':
			quote = r
			return false
		}
		return r == ' ' || r == '\t' || r == '\n'
	})
	for _, w := range word {
		out = append(out, strings.NewReplacer(`"`, "", `'`, "").Replace(w))
	}
	return slices.Clip(out)
}
