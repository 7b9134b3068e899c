package testkit

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/moby/sys/mountinfo"
)

// settle is how long things may take to go by themselves: the kernel drops
// namespaces, links and cgroups after the call that ends them has returned.
const settle = 15 * time.Second

// A Baseline is what there was at one moment, to be compared with later.
type Baseline struct {
	dirs   []string
	have   map[string]bool
	ignore []*regexp.Regexp
}

// Leftovers notes what there is, and at the test's end reports as errors what
// there is more: processes, mounts (and thus pinned namespaces), links, nft
// tables, cgroups, and files below dirs. Call it before anything that
// registers a cleanup of its own.
func Leftovers(t testing.TB, dirs ...string) *Baseline {
	t.Helper()
	b := NewBaseline(dirs...)
	t.Cleanup(func() {
		for _, l := range b.Left() {
			t.Errorf("left behind: %s", l)
		}
	})
	return b
}

// NewBaseline notes what there is.
func NewBaseline(dirs ...string) *Baseline {
	b := &Baseline{dirs: dirs, have: map[string]bool{}}
	// What others use now they may leave empty later: it is not this test's.
	for _, item := range present(dirs, true) {
		b.have[item] = true
	}
	return b
}

// Ignore leaves out what matches pattern, such as "^nft table ip nat$".
func (b *Baseline) Ignore(pattern string) {
	b.ignore = append(b.ignore, regexp.MustCompile(pattern))
}

// Left returns what is there now, was not before, and stays although it has
// some time in which it may go by itself. What comes and goes meanwhile is
// others', whose tests run at the same time.
func (b *Baseline) Left() []string {
	left := b.new()
	for deadline := time.Now().Add(settle); len(left) > 0 && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
		now := b.new()
		left = slices.DeleteFunc(left, func(item string) bool { return !slices.Contains(now, item) })
	}
	return left
}

// new lists what is there now and was not before.
func (b *Baseline) new() []string {
	return slices.DeleteFunc(present(b.dirs, false), func(item string) bool {
		return b.have[item] || slices.ContainsFunc(b.ignore, func(r *regexp.Regexp) bool { return r.MatchString(item) })
	})
}

// present lists everything of the kinds that Leftovers watches, each as one
// line that starts with its kind; cgroups that processes of others use if
// foreign is set.
func present(dirs []string, foreign bool) []string {
	ours := map[int]bool{os.Getpid(): true}
	var items []string
	for _, p := range descendants(outermost()) {
		ours[p.pid] = true
		if p.pid != os.Getpid() {
			items = append(items, "process "+p.String())
		}
	}
	items = append(items, mounts()...)
	items = append(items, links()...)
	items = append(items, tables()...)
	items = append(items, cgroups(ours, foreign)...)
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && path != dir {
				items = append(items, "file "+path)
			}
			return nil
		})
	}
	return items
}

func mounts() []string {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return []string{fmt.Sprintf("mounts cannot be read: %v", err)}
	}
	var items []string
	for _, m := range all {
		items = append(items, fmt.Sprintf("mount %s (%s)", m.Mountpoint, m.FSType))
	}
	return items
}

func links() []string {
	all, err := net.Interfaces()
	if err != nil {
		return []string{fmt.Sprintf("links cannot be read: %v", err)}
	}
	var items []string
	for _, l := range all {
		items = append(items, "link "+l.Name)
	}
	return items
}

var families = map[nftables.TableFamily]string{
	nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
	nftables.TableFamilyBridge: "bridge", nftables.TableFamilyARP: "arp", nftables.TableFamilyNetdev: "netdev",
}

func tables() []string {
	if os.Geteuid() != 0 {
		return nil
	}
	c, err := nftables.New()
	if err != nil {
		return []string{fmt.Sprintf("nft tables cannot be read: %v", err)}
	}
	all, err := c.ListTables()
	if err != nil {
		return []string{fmt.Sprintf("nft tables cannot be read: %v", err)}
	}
	var items []string
	for _, t := range all {
		items = append(items, "nft table "+families[t.Family]+" "+t.Name)
	}
	return items
}

// cgroups lists control groups, each once however many hierarchies have it,
// except a kubelet's, and unless withForeign is set those in use by processes
// that are none of ours: other programs make them all the time.
func cgroups(ours map[int]bool, withForeign bool) []string {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return []string{fmt.Sprintf("cgroups cannot be read: %v", err)}
	}
	found, foreign := map[string]bool{}, map[string]bool{}
	for _, m := range mounts {
		_ = filepath.WalkDir(m.Mountpoint, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() || path == m.Mountpoint {
				return nil
			}
			group := strings.TrimPrefix(path, m.Mountpoint)
			if strings.HasPrefix(group, "/kubepods") {
				return filepath.SkipDir
			}
			if group == systemdSlice {
				return nil
			}
			found[group] = true
			if hasForeign(path, ours) {
				for ; group != "/"; group = filepath.Dir(group) {
					foreign[group] = true
				}
			}
			return nil
		})
	}
	var items []string
	for group := range found {
		if withForeign || !foreign[group] {
			items = append(items, "cgroup "+group)
		}
	}
	slices.Sort(items)
	return items
}

// systemdSlice is what systemd makes for the pods' scopes, and keeps.
const systemdSlice = "/davit.slice"

func hasForeign(dir string, ours map[int]bool) bool {
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(strings.Fields(string(procs)), func(s string) bool {
		pid, _ := strconv.Atoi(s)
		return !ours[pid]
	})
}
