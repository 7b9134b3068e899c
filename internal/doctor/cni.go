package doctor

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

var cniChecks = []Check{
	{Name: "cni", What: "CNI configuration files, and the plugins that they name", run: checkCNI, Faults: []Fault{
		{"cni-file-invalid", Error, "a file in the CNI folder is not JSON"},
		{"cni-config-unusable", Error, "a CNI configuration has no name, no plugins, or a plugin without a type"},
		{"cni-version-unknown", Error, "a CNI configuration is of a version newer than 1.1.0, or of none that exists"},
		{"cni-plugin-missing", Error, "a plugin that the configuration names is in none of the plugin folders"},
		{"cni-plugin-not-executable", Error, "a plugin is there but may not be executed"},
		{"cni-plugin-broken", Error, "a plugin does not even tell its versions: it is for another machine, or damaged"},
		{"cni-plugin-version", Error, "a plugin does not know the configuration's version"},
		{"flannel-subnet-missing", Error, "flannel has not written which addresses this node's pods get: it does not run"},
		{"cni-several-configs", Warning, "two networks are configured: the first by name is used, and the other is perhaps the one that is meant"},
	}},
	{Name: "pod-subnets", What: "that pods' addresses are nobody else's", run: checkSubnets, Faults: []Fault{
		{"pod-subnet-overlap", Error, "a route of the node leads into the range that pods get addresses from"},
		{"pod-subnet-small", Warning, "pods get addresses from a range with fewer than the kubelet's maxPods"},
		{"cni-bridge-other-subnet", Error, "the pods' bridge still has the addresses of an earlier configuration: plugins refuse it"},
	}},
}

// newestCNI is the newest version of the CNI that davit and containerd know.
var newestCNI = version{1, 1}

// A cniFile is a file in the CNI folder.
type cniFile struct {
	path    string
	err     error  // it cannot be read, or is no JSON
	problem string // it cannot be used
	fault   string // name of the fault for problem
	version string
	types   []string // of plugins, in order
	bridges []string
	subnets []string // that its plugins give addresses from
	flannel string   // the file that has flannel's; empty: none of its plugins is that
}

func (c *cniFile) has(plugin string) bool { return slices.Contains(c.types, plugin) }

type cniFolder struct {
	dir   string
	err   error
	files []cniFile // with the endings that count, in lexical order
}

// chosen returns the configuration that is used; nil for none, where davit's
// built-in network is.
func (c cniFolder) chosen() *cniFile {
	for i, f := range c.files {
		if f.err == nil && f.problem == "" {
			return &c.files[i]
		}
	}
	return nil
}

// builtIn reports whether pods are connected by davit's own network: where it
// is the runtime, and nothing is configured.
func (f *facts) builtIn() bool {
	name := f.answer().Name
	return f.cni().chosen() == nil && f.davit().here() && (name == "" || name == "davit")
}

func (f *facts) readCNI() cniFolder {
	folder := cniFolder{dir: f.davit().CNIConfDir}
	entries, err := os.ReadDir(f.at(folder.dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		folder.err = err
	}
	for _, e := range entries {
		if slices.Contains([]string{".conflist", ".conf", ".json"}, filepath.Ext(e.Name())) && !e.IsDir() {
			folder.files = append(folder.files, f.readCNIFile(filepath.Join(folder.dir, e.Name())))
		}
	}
	return folder
}

type cniPlugin struct {
	Type    string `json:"type"`
	Bridge  string `json:"bridge"`
	Flannel string `json:"subnetFile"` // of plugin flannel
	IPAM    struct {
		Subnet string                      `json:"subnet"`
		Ranges [][]struct{ Subnet string } `json:"ranges"`
	} `json:"ipam"`
}

// readCNIFile reads a list of plugins, or a single one, whatever the name says.
func (f *facts) readCNIFile(path string) cniFile {
	c := cniFile{path: path}
	data, err := f.read(path)
	if err != nil {
		c.err = err
		return c
	}
	var list struct {
		Name       string      `json:"name"`
		CNIVersion string      `json:"cniVersion"`
		Plugins    []cniPlugin `json:"plugins"`
		Inline     *bool       `json:"loadOnlyInlinedPlugins"`
		cniPlugin
	}
	if err := json.Unmarshal(data, &list); err != nil {
		c.err = fmt.Errorf("not JSON: %w", err)
		return c
	}
	if list.Type != "" && list.Plugins == nil {
		list.Plugins = []cniPlugin{list.cniPlugin}
	}
	c.version = list.CNIVersion
	for _, p := range list.Plugins {
		c.types = append(c.types, p.Type)
		c.bridges = append(c.bridges, p.Bridge)
		if p.Type == "flannel" {
			c.flannel = cmp.Or(p.Flannel, flannelFile)
			c.bridges = append(c.bridges, "cni0")
			c.subnets = append(c.subnets, f.flannelSubnets(c.flannel)...)
		}
		c.subnets = append(c.subnets, p.IPAM.Subnet)
		for _, set := range p.IPAM.Ranges {
			for _, r := range set {
				c.subnets = append(c.subnets, r.Subnet)
			}
		}
	}
	v := parseVersion(c.version)
	fromFolder := list.Inline != nil && !*list.Inline
	switch {
	case list.Name == "":
		c.fault, c.problem = "cni-config-unusable", "it has no name"
	case len(c.types) == 0 && !fromFolder:
		c.fault, c.problem = "cni-config-unusable", "it has no plugins"
	case slices.Contains(c.types, ""):
		c.fault, c.problem = "cni-config-unusable", "a plugin has no type"
	case strings.Contains(strings.Join(c.types, ""), "/"):
		c.fault, c.problem = "cni-config-unusable", "a plugin's type is a path"
	case onlyLoopback(c.types):
		c.fault, c.problem = "cni-config-unusable", "it has only the loopback plugin, which connects nothing"
	case c.version != "" && !v.known(), v.major > newestCNI.major || v.major == newestCNI.major && v.minor > newestCNI.minor:
		c.fault, c.problem = "cni-version-unknown", fmt.Sprintf("cniVersion %s; the newest that is known is %d.%d.0", c.version, newestCNI.major, newestCNI.minor)
	}
	return c
}

// flannelFile is where flannel writes what its plugin goes by.
// flannel-io/cni-plugin: README.
const flannelFile = "/run/flannel/subnet.env"

func (n *Node) flannelSubnets(file string) (subnets []string) {
	for line := range strings.Lines(n.text(file)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if name == "FLANNEL_SUBNET" || name == "FLANNEL_IPV6_SUBNET" {
			subnets = append(subnets, value)
		}
	}
	return subnets
}

func onlyLoopback(types []string) bool { return len(types) == 1 && types[0] == "loopback" }

// delegating are plugins that use the other configurations.
var delegating = []string{"multus", "multus-shim"}

func checkCNI(l *look) {
	folder := l.cni()
	if folder.err != nil {
		l.unseen(folder.dir, folder.err)
		l.skip("%s: %v", folder.dir, plain(folder.err))
		return
	}
	chosen := folder.chosen()
	// What keeps a file from being used is grave only if no other one is.
	tell := l.fault
	if chosen != nil {
		tell = l.warn
	}
	var usable []string
	for _, c := range folder.files {
		aside := fmt.Sprintf("mv %s %s.disabled   # or correct it", c.path, c.path)
		switch {
		case errors.Is(c.err, fs.ErrPermission):
			l.unseen(c.path, c.err)
		case c.err != nil:
			tell("cni-file-invalid", aside, "%s: %v", c.path, plain(c.err))
		case onlyLoopback(c.types) && chosen != nil: // some packages bring one
		case c.problem != "":
			tell(c.fault, aside, "%s: %s", c.path, c.problem)
		default:
			usable = append(usable, filepath.Base(c.path))
		}
	}
	if len(usable) > 1 && !slices.ContainsFunc(delegating, chosen.has) {
		l.fault("cni-several-configs", fmt.Sprintf("rm %s   # or the other one", filepath.Join(folder.dir, usable[0])),
			"%s has %s: %s is used", folder.dir, strings.Join(usable, ", "), usable[0])
	}
	switch {
	case chosen != nil:
	case l.builtIn():
		l.okay("no configuration in %s; davit has a network of its own", folder.dir)
		return
	default:
		l.okay("no configuration in %s", folder.dir)
		return
	}
	if chosen.flannel != "" && !l.exists(chosen.flannel) {
		l.fault("flannel-subnet-missing", "kubectl get pods -A -o wide --field-selector spec.nodeName=$(hostname) | grep flannel   # its log says why it does not run: kubectl logs -n kube-flannel POD",
			"%s names flannel, and there is no %s, which flannel writes", chosen.path, chosen.flannel)
	}
	l.checkPlugins(chosen)
	l.okay("%s: %s", chosen.path, strings.Join(chosen.types, ", "))
}

func (l *look) checkPlugins(c *cniFile) {
	dirs := l.davit().CNIBinDirs
	fix := fmt.Sprintf("apt-get install containernetworking-plugins || ls -l %s   # or install the network add-on's again", strings.Join(dirs, " "))
	var seen []string
	for _, name := range c.types {
		if slices.Contains(seen, name) {
			continue
		}
		seen = append(seen, name)
		path, runs := l.find(name, dirs)
		switch {
		case path == "":
			l.fault("cni-plugin-missing", fix, "%s names the plugin %s, which is not in %s", c.path, name, strings.Join(dirs, ", "))
			continue
		case !runs:
			l.fault("cni-plugin-not-executable", "chmod 0755 "+path, "%s may not be executed", path)
			continue
		}
		out, err := l.Run(l.ctx, []string{"CNI_COMMAND=VERSION", "CNI_PATH=" + filepath.Dir(path)}, path)
		var said struct {
			Supported []string `json:"supportedVersions"`
		}
		if err == nil {
			err = json.Unmarshal([]byte(out), &said)
		}
		switch {
		case errors.Is(err, fs.ErrPermission), errors.Is(err, errSlow):
			l.unseen(path, err)
		case err != nil:
			l.fault("cni-plugin-broken", fix, "%s does not tell its versions: %v", path, err)
		case c.version != "" && !slices.Contains(said.Supported, c.version):
			l.fault("cni-plugin-version", fmt.Sprintf("# a newer plugin, or in %s: \"cniVersion\": \"%s\"", c.path, newest(said.Supported)),
				"%s is of version %s; %s knows only %s", c.path, c.version, path, strings.Join(said.Supported, ", "))
		}
	}
}

func newest(versions []string) string {
	best := "0.3.1"
	for _, v := range versions {
		if parseVersion(v).atLeast(parseVersion(best).major, parseVersion(best).minor) {
			best = v
		}
	}
	return best
}

func checkSubnets(l *look) {
	d := l.davit()
	subnets, links, where := d.Subnets, []string{d.Bridge}, "davit's network.subnets"
	if c := l.cni().chosen(); c != nil {
		subnets, links, where = c.subnets, append(c.bridges, "cni0"), c.path
	}
	var told []string
	for _, text := range subnets {
		subnet, err := netip.ParsePrefix(text)
		if err != nil {
			continue
		}
		told = append(told, text)
		for _, r := range l.routes() {
			if r.to.Overlaps(subnet) && !slices.Contains(links, r.link) {
				l.fault("pod-subnet-overlap", "ip route show "+r.to.String()+"   # then give pods another range in "+where,
					"pods get addresses from %s (%s), where the node has a route to %s by %s", subnet, where, r.to, r.link)
				break
			}
		}
	}
	l.checkBridges(links)
	l.checkRoom(subnets, where)
	if len(told) == 0 {
		l.okay("given by what is configured elsewhere")
		return
	}
	l.okay("%s", strings.Join(told, ", "))
}

// checkBridges looks for a bridge that has a subnet, and not one of those that
// pods get addresses from.
func (l *look) checkBridges(links []string) {
	c := l.cni().chosen()
	if c == nil {
		return // davit changes its own
	}
	for _, r := range l.routes() {
		same, inside := false, false
		for _, text := range c.subnets {
			if s, err := netip.ParsePrefix(text); err == nil && s.Addr().Is4() == r.to.Addr().Is4() {
				same, inside = true, inside || s.Overlaps(r.to)
			}
		}
		if slices.Contains(links, r.link) && same && !inside {
			l.fault("cni-bridge-other-subnet", "ip link delete "+r.link+"   # drain the node first; the plugin makes it again with the next pod",
				"%s has a route to %s, and by %s pods get addresses from %s", r.link, r.to, c.path, strings.Join(slices.DeleteFunc(slices.Clone(c.subnets), func(s string) bool { return s == "" }), ", "))
			return
		}
	}
}

// checkRoom compares the number of IPv4 addresses with that of pods.
func (l *look) checkRoom(subnets []string, where string) {
	k := l.kubelet()
	if k == nil {
		return
	}
	pods := 110 // kubelet: defaults.go, MaxPods
	if v, ok := k.Value("maxPods"); ok {
		pods, _ = strconv.Atoi(v.Text)
	}
	room, known := 0, false
	for _, text := range subnets {
		if s, err := netip.ParsePrefix(text); err == nil && s.Addr().Is4() {
			room += 1<<(32-s.Bits()) - 3 // of the network, broadcast, the node
			known = true
		}
	}
	if known && room < pods {
		l.fault("pod-subnet-small", l.setKubelet("maxPods", fmt.Sprint(max(room, 1)))+"   # or give pods more addresses in "+where,
			"pods get %d addresses (%s), and the kubelet takes %d pods", room, strings.Join(subnets, ", "), pods)
	}
}

type route struct {
	to   netip.Prefix
	link string
}

// routes returns the node's, without default ones, single hosts and links' own.
//
// kernel: fib_trie.c, fib_route_seq_show; net/ipv6/route.c, rt6_info_route.
func (l *look) routes() []route {
	var all []route
	add := func(p netip.Prefix, link string) {
		if p.Bits() > 0 && !p.IsSingleIP() && link != "lo" && !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsMulticast() {
			all = append(all, route{p.Masked(), link})
		}
	}
	for line := range strings.Lines(l.text("/proc/net/route")) {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		to, err := hex.DecodeString(f[1])
		mask, maskErr := hex.DecodeString(f[7])
		if err != nil || maskErr != nil || len(to) != 4 || len(mask) != 4 {
			continue // the header
		}
		slices.Reverse(to) // as the machine stores it: little-endian wherever davit runs
		ones := 0
		for m := binary.LittleEndian.Uint32(mask); m != 0; m &= m - 1 {
			ones++
		}
		add(netip.PrefixFrom(netip.AddrFrom4([4]byte(to)), ones), f[0])
	}
	for line := range strings.Lines(l.text("/proc/net/ipv6_route")) {
		f := strings.Fields(line)
		if len(f) < 10 {
			continue
		}
		to, err := hex.DecodeString(f[0])
		bits, bitsErr := hex.DecodeString(f[1])
		if err == nil && bitsErr == nil && len(to) == 16 && len(bits) == 1 {
			add(netip.PrefixFrom(netip.AddrFrom16([16]byte(to)), int(bits[0])), f[9])
		}
	}
	return all
}
