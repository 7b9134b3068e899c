package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/vishvananda/netlink"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/namespace"
)

// fakePlugin is a CNI plugin that notes each call in LOG and does as the file
// DO-<command> beside it says, if there is one.
const fakePlugin = `#!/bin/sh
here=${0%/*}
input=$(cat)
echo "$CNI_COMMAND $CNI_CONTAINERID ns=$CNI_NETNS $CNI_IFNAME $CNI_ARGS $input" >>$here/LOG
[ -f $here/DO-$CNI_COMMAND ] && . $here/DO-$CNI_COMMAND
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"interface":0,"address":"10.9.8.7/24"},{"interface":0,"address":"fd09::7/64"}]}';;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}';;
esac
`

// A fake is a folder with the fake plugin, and what it was asked.
type fake struct {
	testing.TB
	dir string
}

func newFake(t testing.TB) fake {
	f := fake{t, t.TempDir()}
	f.does("", fakePlugin)
	if err := os.Rename(f.dir+"/DO-", f.dir+"/fake"); err != nil {
		t.Fatal(err)
	}
	return f
}

// does makes the plugin run script at the command, before its answer.
func (f fake) does(command, script string) {
	f.Helper()
	if err := os.WriteFile(f.dir+"/DO-"+command, []byte(script), 0o755); err != nil {
		f.Fatal(err)
	}
}

func (f fake) stops(command string) { _ = os.Remove(f.dir + "/DO-" + command) }

func (f fake) calls(command string) []string {
	log, _ := os.ReadFile(f.dir + "/LOG")
	var out []string
	for line := range strings.Lines(string(log)) {
		if strings.HasPrefix(line, command+" ") {
			out = append(out, line)
		}
	}
	return out
}

const fakeList = `{"cniVersion": "1.1.0", "name": "fakenet", "plugins": [
	{"type": "fake", "capabilities": {"portMappings": true, "bandwidth": true}}]}`

func openFake(t *testing.T, list string) (fake, Config, *Network) {
	t.Helper()
	f := newFake(t)
	c := Config{Root: t.TempDir(), ConfDir: t.TempDir(), PluginDirs: []string{f.dir}}
	writeFile(t, c.ConfDir+"/10-fake.conflist", list)
	n, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return f, c, n
}

func TestPluginsAreCalled(t *testing.T) {
	f, c, n := openFake(t, fakeList)
	ctx := context.Background()
	p := Pod{ID: "id1", Name: "web", Namespace: "ns1", UID: "u1", NetNS: "/proc/self/ns/net",
		Annotations: map[string]string{"kubernetes.io/egress-bandwidth": "10M"},
		Ports:       []Port{{Protocol: "udp", HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 53, ContainerPort: 5353}}}
	r, err := n.Attach(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	if r.Driver != "cni" || fmt.Sprint(r.Addrs) != "[10.9.8.7 fd09::7]" || !json.Valid(r.Raw) {
		t.Errorf("result %+v", r)
	}
	add := f.calls("ADD")
	for _, want := range []string{"id1 ns=/proc/self/ns/net eth0", "IgnoreUnknown=1", "K8S_POD_NAMESPACE=ns1", "K8S_POD_NAME=web",
		"K8S_POD_INFRA_CONTAINER_ID=id1", "K8S_POD_UID=u1", `"containerPort":5353`, `"hostIP":"127.0.0.1"`, `"egressRate":10000000`} {
		if len(add) != 1 || !strings.Contains(add[0], want) {
			t.Errorf("ADD lacks %q: %v", want, add)
		}
	}
	if err := n.Check(ctx, p); err != nil || len(f.calls("CHECK")) != 1 {
		t.Errorf("check: %v, %v", err, f.calls("CHECK"))
	}

	p.ID, p.Annotations = "id2", map[string]string{"kubernetes.io/ingress-bandwidth": "much"}
	if _, err := n.Attach(ctx, p); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), `"much"`) {
		t.Errorf("a bandwidth that is none: %v", err)
	}

	// The program restarts; the configuration is another one, the namespace gone.
	writeFile(t, c.ConfDir+"/10-fake.conflist", `{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "absent"}]}`)
	if n, err = Open(c); err != nil {
		t.Fatal(err)
	}
	f.does("DEL", `echo '{"code": 11, "msg": "not now"}'; exit 1`)
	if err := n.Detach(ctx, Pod{ID: "id1"}); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "CNI plugin fake: not now") {
		t.Errorf("a plugin that fails: %v", err)
	}
	f.stops("DEL")
	for range 2 { // the lease has stayed, until DEL has worked
		if err := n.Detach(ctx, Pod{ID: "id1"}); err != nil {
			t.Errorf("detach: %v", err)
		}
	}
	del := f.calls("DEL")
	if len(del) != 2 || !strings.Contains(del[1], `"name":"fakenet"`) || !strings.Contains(del[1], "10.9.8.7") || !strings.Contains(del[1], `"hostPort":53`) {
		t.Errorf("DEL: %v, want twice, with the name, result and ports of ADD", del)
	}
	if left, _ := filepath.Glob(c.Root + "/*.json"); len(left) > 0 {
		t.Errorf("leases left: %v", left)
	}
}

// However an ADD ends, there is a DEL; without the namespace if that is gone.
func TestEachAddHasADel(t *testing.T) {
	f, c, n := openFake(t, fakeList)
	ctx := context.Background()
	for id, script := range map[string]string{
		"says-error":   `echo '{"code": 7, "msg": "no room", "details": "at all"}'; exit 1`,
		"says-nothing": `echo "segmentation fault" >&2; exit 139`,
		"no-address":   `echo '{"cniVersion": "1.1.0"}'; exit`,
		"no-json":      `echo 'hello'; exit`,
	} {
		f.does("ADD", script)
		_, err := n.Attach(ctx, Pod{ID: id, NetNS: "/nowhere"})
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "fake") {
			t.Errorf("%s: %v, want Unavailable naming network or plugin", id, err)
		}
	}
	f.does("ADD", `kill -9 $$`)
	_, _ = n.Attach(ctx, Pod{ID: "killed", NetNS: "/nowhere"})
	n, err := Open(c) // and then davit crashes
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Collect(ctx, nil); err != nil {
		t.Fatal(err)
	}
	for _, add := range f.calls("ADD") {
		id := strings.Fields(add)[1]
		found := false
		for _, del := range f.calls("DEL") {
			found = found || strings.HasPrefix(del, "DEL "+id+" ns= ")
		}
		if !found {
			t.Errorf("no DEL, or with a namespace, for %s", id)
		}
	}
	if gc := f.calls("GC"); len(gc) != 1 || !strings.Contains(gc[0], `"cni.dev/valid-attachments":[]`) {
		t.Errorf("GC: %v", gc)
	}
}

func TestCollectKeepsLiveAttachments(t *testing.T) {
	f, _, n := openFake(t, fakeList)
	ctx := context.Background()
	for _, id := range []string{"live", "dead"} {
		if _, err := n.Attach(ctx, Pod{ID: id, NetNS: "/nowhere"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Collect(ctx, attached("live")); err != nil {
		t.Fatal(err)
	}
	if del := f.calls("DEL"); len(del) != 1 || !strings.HasPrefix(del[0], "DEL dead ") {
		t.Errorf("DEL: %v", del)
	}
	if gc := f.calls("GC"); len(gc) != 1 || !strings.Contains(gc[0], `"containerID":"live","ifname":"eth0"`) {
		t.Errorf("GC: %v", gc)
	}
}

// A plugin that hangs ends with the caller's context, and so does what it started.
func TestHangingPluginIsKilled(t *testing.T) {
	f, _, n := openFake(t, fakeList)
	f.does("ADD", `sleep 1000 & echo $! >$here/CHILD; wait`)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := n.Attach(ctx, Pod{ID: "hangs", NetNS: "/nowhere"})
	if !fault.Is(err, fault.Deadline) || time.Since(began) > 2*time.Second {
		t.Errorf("got %v after %v", err, time.Since(began))
	}
	child, _ := os.ReadFile(f.dir + "/CHILD")
	await(t, "the plugin's child to end", func() bool {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(child)) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ") // whoever its parent is may reap late
	})
	if err := n.Detach(context.Background(), Pod{ID: "hangs"}); err != nil {
		t.Error(err)
	}
}

func TestStatusOfPlugins(t *testing.T) {
	f, _, n := openFake(t, fakeList)
	f.does("STATUS", `echo '{"code": 50, "msg": "agent is starting"}'; exit 1`)
	run(t, n)
	await(t, "the plugin's complaint", func() bool {
		err := n.Status()
		return fault.Is(err, fault.Unavailable) && strings.Contains(err.Error(), "agent is starting")
	})
	f.stops("STATUS")
	n.askPlugins(context.Background())
	if err := n.Status(); err != nil {
		t.Errorf("once ready: %v", err)
	}
}

// run runs n until the test's end.
func run(t *testing.T, n *Network) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Whatever way a configuration comes, it is noticed within a second.
func TestConfigurationIsNoticed(t *testing.T) {
	f := newFake(t)
	top := t.TempDir()
	c := Config{Root: t.TempDir(), ConfDir: top + "/etc/cni/net.d", PluginDirs: []string{f.dir}}
	n, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Status(); err != nil || n.choice.Load().list != nil {
		t.Fatalf("no folder: %v", err)
	}
	run(t, n)
	list := func(name string) string { return strings.ReplaceAll(fakeList, "fakenet", name) }
	noticed := func(what, name string) {
		t.Helper()
		for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
			if l := n.choice.Load().list; l != nil && l.Name == name || l == nil && name == "" {
				return
			}
			if time.Since(began) > time.Second {
				t.Fatalf("%s: not noticed within a second; status: %v", what, n.Status())
			}
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, c.ConfDir+"/10-a.conflist", list("later-folder"))
	noticed("a folder made later", "later-folder")
	writeFile(t, c.ConfDir+"/05-b.conflist", list("earlier-name"))
	noticed("a name before it", "earlier-name")
	writeFile(t, c.ConfDir+"/.tmp", list("renamed"))
	must(os.Rename(c.ConfDir+"/.tmp", c.ConfDir+"/05-b.conflist"))
	noticed("a rename", "renamed")
	must(os.Remove(c.ConfDir + "/05-b.conflist"))
	noticed("a removal", "later-folder")
	// As a Kubernetes ConfigMap volume does it.
	writeFile(t, c.ConfDir+"/..v1/01-c.conflist", list("first-version"))
	must(os.Symlink("..v1", c.ConfDir+"/..data"))
	must(os.Symlink("..data/01-c.conflist", c.ConfDir+"/01-c.conflist"))
	noticed("a symlink", "first-version")
	writeFile(t, c.ConfDir+"/..v2/01-c.conflist", list("second-version"))
	must(os.Symlink("..v2", c.ConfDir+"/..new"))
	must(os.Rename(c.ConfDir+"/..new", c.ConfDir+"/..data"))
	noticed("a symlink swapped", "second-version")
	// The folder as a whole.
	must(os.RemoveAll(top + "/etc"))
	noticed("the folder gone", "")
	writeFile(t, top+"/elsewhere/10-d.conflist", list("linked"))
	must(os.MkdirAll(filepath.Dir(c.ConfDir), 0o755))
	must(os.Symlink(top+"/elsewhere", c.ConfDir))
	noticed("the folder a symlink", "linked")
	// A plugin that is installed last.
	writeFile(t, top+"/elsewhere/10-d.conflist", strings.ReplaceAll(list("late-plugin"), `"fake"`, `"late"`))
	await(t, "a complaint", func() bool { return n.Status() != nil })
	must(os.Symlink("fake", f.dir+"/late"))
	noticed("a plugin installed late", "late-plugin")
	// Another folder of configuration, and of plugins.
	writeFile(t, top+"/moved/10-e.conflist", strings.ReplaceAll(list("moved"), `"fake"`, `"moved"`))
	writeFile(t, top+"/plugins/other", "")
	must(os.Symlink(f.dir+"/fake", top+"/plugins/moved"))
	n.SetCNI(t.Context(), top+"/moved", []string{top + "/plugins"}, 0)
	noticed("another folder", "moved")
	writeFile(t, top+"/moved/05-f.conflist", strings.ReplaceAll(list("moved-again"), `"fake"`, `"moved"`))
	noticed("a change there", "moved-again")
}

func TestChoose(t *testing.T) {
	f := newFake(t)
	if err := os.WriteFile(f.dir+"/notexec", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	const ok = `{"cniVersion": "1.0.0", "name": "ok", "plugins": [{"type": "fake"}]}`
	tests := []struct {
		name  string
		files map[string]string
		want  string   // file chosen
		says  []string // of the error
	}{
		{"empty", nil, "", nil},
		{"other files", map[string]string{"README": "x", "10.conflist.bak": ok, "..data/10.conflist": ok, "dir.conf/x": "x"}, "", nil},
		{"first", map[string]string{"20.conflist": ok, "10.conf": `{"cniVersion": "0.3.1", "name": "single", "type": "fake"}`}, "10.conf", nil},
		{"list in .conf", map[string]string{"10.conf": ok}, "10.conf", nil},
		{"no version", map[string]string{"10.conf": `{"name": "old", "type": "fake"}`}, "10.conf", nil},
		{"json", map[string]string{"10.json": ok}, "10.json", nil},
		{"the valid one", map[string]string{"10.conflist": `{`, "20.conflist": ok}, "20.conflist", nil},
		{"plugins of their own", map[string]string{"10.conflist": `{"cniVersion": "1.1.0", "name": "split"}`, "split/1.conf": `{"type": "fake"}`}, "10.conflist", nil},
		{"none valid", map[string]string{
			"1.conflist": `{`,
			"2.conflist": `{"cniVersion": "1.0.0", "plugins": [{"type": "fake"}]}`,
			"3.conflist": `{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "absent"}]}`,
			"4.conflist": `{"cniVersion": "9.0.0", "name": "x", "plugins": [{"type": "fake"}]}`,
			"5.conflist": `{"cniVersion": "1.0.0", "name": "x", "plugins": []}`,
			"6.conf":     `{"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}`,
			"7.conflist": `{"cniVersion": "1.0.0", "name": "../x", "plugins": [{"type": "fake"}]}`,
			"8.conflist": `{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "notexec"}]}`,
			"9.conflist": ``,
		}, "", []string{"1.conflist: not valid JSON", "2.conflist: ", "no name", `3.conflist: plugin "absent" is in none of ` + f.dir,
			"4.conflist: cniVersion 9.0.0 is newer", "5.conflist: ", "6.conf: only the loopback", "7.conflist: name", "8.conflist: ", "not executable", "9.conflist: "}},
	}
	for _, tt := range tests {
		dir := t.TempDir()
		for name, text := range tt.files {
			writeFile(t, filepath.Join(dir, name), text)
		}
		c := choose(dir, []string{f.dir})
		if c.file != tt.want || (c.err != nil) != (tt.says != nil) || (c.list != nil) != (tt.want != "") {
			t.Errorf("%s: chose %q, %v", tt.name, c.file, c.err)
		}
		if c.list != nil { // what the lease keeps is as good as the files
			again, err := parse(c.raw)
			if err != nil || usable(again) != nil || len(again.Plugins) != len(c.list.Plugins) {
				t.Errorf("%s: %s: %v", tt.name, c.raw, err)
			}
		}
		for _, want := range append(tt.says, map[bool]string{true: dir}[tt.says != nil]) {
			if want != "" && !strings.Contains(c.err.Error(), want) {
				t.Errorf("%s: %q lacks %q", tt.name, c.err, want)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{fakeList, `{"name": "x", "type": "y"}`, `{"plugins": [null], "name": "x"}`, `{"name": "x", "plugins": [{"type": ""}]}`,
		`{"name":"x","cniVersions":["1.0.0","9.9.9"],"plugins":[{"type":"y"}]}`, `null`, `[]`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parse(data)
		if err != nil || usable(list) != nil {
			return
		}
		raw, err := whole(list)
		if err != nil {
			t.Fatalf("%q is usable, but cannot be kept: %v", data, err)
		}
		if again, err := parse(raw); err != nil || usable(again) != nil || again.Name != list.Name || len(again.Plugins) != len(list.Plugins) {
			t.Fatalf("%q became %q: %v", data, raw, err)
		}
	})
}

func FuzzAddresses(f *testing.F) {
	for _, seed := range []string{
		`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"interface":0,"address":"10.9.8.7/24"}]}`,
		`{"cniVersion":"1.0.0","interfaces":[null],"ips":[{"interface":0,"address":"10.9.8.7/24"},null]}`,
		`{"cniVersion":"0.4.0","interfaces":[],"ips":[{"version":"6","interface":7,"address":"fd00::1/64"}]}`,
		`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"}}`, `{"cniVersion":"1.1.0","ips":[{"interface":-1,"address":"1.2.3.4/5"}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := create.CreateFromBytes(data)
		if err != nil {
			return
		}
		addrs, err := addresses(r, podInterface)
		if err == nil && len(addrs) == 0 {
			t.Error("neither addresses nor an error")
		}
	})
}

// Debian's plugins, end to end.
func TestRealPlugins(t *testing.T) {
	w := newWorld(t)
	dir := "/usr/lib/cni"
	if _, err := os.Stat(dir + "/bridge"); err != nil {
		t.Fatalf("the plugins are missing: apt-get install containernetworking-plugins: %v", err)
	}
	w.config.PluginDirs = []string{dir}
	writeFile(t, w.config.ConfDir+"/10-real.conflist", fmt.Sprintf(`{
		"cniVersion": "1.0.0", "name": "real", "plugins": [
			{"type": "bridge", "bridge": "cnitest0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
			 "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.99.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
			{"type": "portmap", "capabilities": {"portMappings": true}}]}`, w.dir+"/ipam"))
	w.reopen()
	t.Cleanup(func() { // the plugins' own chains and bridge stay, as they do on a node
		if l, err := netlink.LinkByName("cnitest0"); err == nil {
			_ = netlink.LinkDel(l)
		}
		for _, table := range []string{"ip nat", "ip filter", "ip6 nat", "ip mangle", "ip6 mangle", "ip6 filter"} {
			_ = exec.Command("nft", append([]string{"delete", "table"}, strings.Fields(table)...)...).Run()
		}
	})
	a := w.pod("a", Port{Protocol: "tcp", HostPort: 18099, ContainerPort: 80})
	b := w.pod("b")
	ra, rb := w.attach(a), w.attach(b)
	w.serve(a, 80)
	if from, err := w.ask(b, "tcp", ra.Addrs[0].String()+":80"); err != nil || from != rb.Addrs[0] {
		t.Errorf("pod to pod: %v, %v", from, err)
	}
	if _, err := w.ask(host, "tcp", "127.0.0.1:18099"); err != nil {
		t.Errorf("host port: %v", err)
	}
	if err := w.Check(w.ctx, b); err != nil { // not a: portmap 1.1.1 misses its IPv6 chains where there is no IPv6
		t.Errorf("check: %v", err)
	}
	held := func() int {
		ips, _ := filepath.Glob(w.dir + "/ipam/real/10.99.*")
		return len(ips)
	}
	if held() != 2 {
		t.Errorf("%d addresses held, want 2", held())
	}
	w.end(a)
	// A reboot: no namespace, no configuration, only the lease.
	if err := errors.Join(namespace.New().Release(w.ctx, filepath.Dir(b.NetNS)), os.RemoveAll(w.config.ConfDir)); err != nil {
		t.Fatal(err)
	}
	w.reopen()
	if err := w.Collect(w.ctx, nil); err != nil {
		t.Error(err)
	}
	if held() != 0 || len(w.leaseFiles()) != 0 {
		t.Errorf("%d addresses and leases %v held after all", held(), w.leaseFiles())
	}
	if cached, _ := filepath.Glob(w.config.Root + "/cni/results/*"); len(cached) > 0 {
		t.Errorf("cached results left: %v", cached)
	}
}
