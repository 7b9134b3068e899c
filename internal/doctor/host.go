package doctor

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

var hostChecks = []Check{
	{Name: "clock", What: "the time, without which certificates are not valid", run: checkClock, Faults: []Fault{
		{"clock-wrong", Error, "the clock is years behind: no certificate is valid yet"},
		{"clock-behind", Warning, "files of the node's are from a later day: the clock has gone back, and certificates may not be valid yet"},
		{"clock-not-synchronised", Warning, "nobody keeps the clock right"},
	}},
	{Name: "hostname", What: "that the node's name can be a Kubernetes node's", run: checkHostname, Faults: []Fault{
		{"hostname-invalid", Error, "the hostname is no DNS name: a node cannot be registered by it; a warning where there is no kubelet"},
		{"hostname-localhost", Warning, "the node is called localhost, as others may be"},
	}},
	{Name: "machine-id", What: "/etc/machine-id", run: checkMachineID, Faults: []Fault{
		{"machine-id-missing", Warning, "/etc/machine-id is missing, empty or uninitialized: the node has no identity of its own"},
	}},
	{Name: "dns", What: "the resolv.conf that pods get", run: checkDNS, Faults: []Fault{
		{"resolv-conf-missing", Error, "the file that the kubelet takes name servers from is not there"},
		{"resolv-conf-loopback", Error, "pods get a name server on a loopback address, which in a pod is the pod: CoreDNS stops with a loop"},
		{"resolv-conf-too-long", Warning, "resolv.conf has more than 3 name servers or 32 search domains: the kubelet leaves some out"},
	}},
}

// older than any davit: a clock that says so is wrong.
var oldest = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const setClock = "timedatectl set-ntp true || apt-get install systemd-timesyncd   # or: chronyc makestep"

func checkClock(l *look) {
	now := l.Now()
	if now.Before(oldest) {
		l.fault("clock-wrong", "date -s '"+oldest.Format(time.DateOnly)+"' && "+setClock, "it is %s here", now.UTC().Format(time.RFC3339))
		return
	}
	for _, file := range l.lately() {
		if info, err := os.Stat(l.at(file)); err == nil && info.ModTime().Sub(now) > aDay {
			l.fault("clock-behind", setClock, "it is %s here, and %s is from %s", now.UTC().Format(time.RFC3339), file, info.ModTime().UTC().Format(time.RFC3339))
			return
		}
	}
	switch sync, err := l.Synchronised(); {
	case err != nil:
		l.unseen("whether the clock is synchronised", err)
	case !sync:
		l.fault("clock-not-synchronised", setClock, "the kernel holds its clock for not synchronised (%s)", now.UTC().Format(time.RFC3339))
	}
	l.okay("%s", now.UTC().Format(time.RFC3339))
}

const aDay = 24 * time.Hour

// lately are files that are written now and then while a node runs.
// systemd: systemd-timesyncd.service(8), /var/lib/systemd/timesync/clock.
func (l *look) lately() []string {
	files := []string{"/var/lib/systemd/timesync/clock", filepath.Join(l.davit().Root, "images", imageDatabase)}
	if k := l.kubelet(); k != nil {
		files = append(files, filepath.Join(k.Dir, "cpu_manager_state"), filepath.Join(k.Dir, kubeletCertificate))
	}
	return files
}

// dnsName is RFC 1123's, as Kubernetes has it for names of nodes.
var dnsName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

func checkHostname(l *look) {
	k := l.kubelet()
	name, tell := l.text("/proc/sys/kernel/hostname"), l.warn
	if k != nil {
		tell = l.fault
		if v, ok := k.Value("hostnameOverride"); ok {
			name = v.Text
		}
	}
	// kubelet: nodeutil.GetHostname makes it lower case.
	switch lower := strings.ToLower(name); {
	case !dnsName.MatchString(lower) || len(lower) > 253:
		tell("hostname-invalid", "hostnamectl set-hostname "+mend(lower), "%q is no DNS name", name)
	case lower == "localhost" || strings.HasPrefix(lower, "localhost."):
		l.fault("hostname-localhost", "hostnamectl set-hostname node1", "the node is called %s", name)
	default:
		l.okay("%s", lower)
	}
}

var notDNS = regexp.MustCompile(`[^a-z0-9.]+`)

// mend returns the valid name nearest to a hostname.
func mend(name string) string {
	if name = strings.Trim(notDNS.ReplaceAllString(name, "-"), "-."); name == "" {
		return "node1"
	}
	return name
}

func checkMachineID(l *look) {
	switch id := l.text("/etc/machine-id"); id {
	case "", "uninitialized":
		l.fault("machine-id-missing", "rm -f /etc/machine-id && systemd-machine-id-setup", "/etc/machine-id has no ID; machines that were copied from this one would share what is made of it")
	default:
		l.okay("%.8s…", id)
	}
}

// kubelet: pkg/apis/core/validation, MaxDNSNameservers and MaxDNSSearchPaths.
const (
	maxNameservers = 3
	maxSearch      = 32
)

func checkDNS(l *look) {
	path, tell := "/etc/resolv.conf", l.warn
	const systemd = "/run/systemd/resolve/resolv.conf"
	if k := l.kubelet(); k != nil {
		tell = l.fault
		if v, ok := k.Value("resolvConf"); ok {
			path = v.Text
		}
	}
	data, err := l.read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		tell("resolv-conf-missing", "ls -l "+path+" "+systemd+"\n"+l.setKubelet("resolvConf", systemd)+"   # to the one that is there", "%s: there is no such file", path)
		return
	case err != nil:
		l.skip("%s: %v", path, plain(err))
		return
	}
	var servers, search []string
	for line := range strings.Lines(string(data)) {
		switch f := strings.Fields(line); {
		case len(f) > 1 && f[0] == "nameserver":
			servers = append(servers, f[1])
		case len(f) > 1 && f[0] == "search":
			search = f[1:] // the last line counts
		}
	}
	for _, s := range servers {
		if a, err := netip.ParseAddr(s); err != nil || !a.IsLoopback() {
			continue
		}
		fix := "# name a server that pods reach in " + path
		if l.exists(systemd) {
			fix = l.setKubelet("resolvConf", systemd)
		}
		tell("resolv-conf-loopback", fix, "%s: name server %s is on a loopback address", path, s)
		break
	}
	if len(servers) > maxNameservers || len(search) > maxSearch {
		l.fault("resolv-conf-too-long", "# keep the first 3 name servers and 32 search domains in "+path, "%s: %d name servers and %d search domains", path, len(servers), len(search))
	}
	l.okay("%s: %s", path, strings.Join(servers, ", "))
}
