package network

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/davit-runtime/davit/internal/fault"
)

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func (w *world) setPodCIDR(texts ...string) {
	w.Helper()
	if err := w.SetPodCIDR(w.ctx, prefixes(texts...)); err != nil {
		w.Fatal(err)
	}
}

func within(t *testing.T, r Result, subnets ...string) {
	t.Helper()
	if len(r.Addrs) != len(subnets) {
		t.Fatalf("addresses %v, want of %v", r.Addrs, subnets)
	}
	for i, s := range prefixes(subnets...) {
		if !s.Contains(r.Addrs[i]) {
			t.Errorf("address %s, want of %s", r.Addrs[i], s)
		}
	}
}

// A pod CIDR holds for pods to come, also after a restart; pods that run keep
// address and connections.
func TestPodCIDR(t *testing.T) {
	w := newWorld(t)
	w.config.Subnets = nil
	w.reopen()
	w.setPodCIDR("10.81.0.0/24")
	old := w.pod("old")
	before := w.attach(old)
	within(t, before, "10.81.0.0/24")
	w.serve(old, 80)
	reach := func(a netip.Addr) {
		t.Helper()
		if _, err := w.ask(host, "tcp", netip.AddrPortFrom(a, 80).String()); err != nil {
			t.Errorf("reach %s: %v", a, err)
		}
	}

	w.setPodCIDR("10.82.7.9/24", "fd82::/64")
	young := w.pod("young")
	after := w.attach(young)
	within(t, after, "10.82.7.0/24", "fd82::/64")
	w.serve(young, 80)
	reach(before.Addrs[0])
	reach(after.Addrs[0])
	reach(after.Addrs[1])
	// The pods reach each other by way of the host.
	if _, err := w.ask(young, "tcp", netip.AddrPortFrom(before.Addrs[0], 80).String()); err != nil {
		t.Errorf("from the new pod to the old: %v", err)
	}

	w.reopen()
	if err := w.Collect(w.ctx, attached(old.ID, young.ID)); err != nil {
		t.Fatal(err)
	}
	reach(before.Addrs[0])
	third := w.pod("third")
	r := w.attach(third)
	within(t, r, "10.82.7.0/24", "fd82::/64")
	if !strings.Contains(string(r.Raw), r.Addrs[0].String()+"/24") {
		t.Errorf("result %s", r.Raw)
	}
	w.end(old)
	w.setPodCIDR("10.82.0.0/16") // which has the one before in it
	link, err := netlink.LinkByName("davit0")
	if err != nil {
		t.Fatal(err)
	}
	have, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range have {
		got = append(got, a.IPNet.String())
	}
	if all := strings.Join(got, " "); strings.Contains(all, "10.81.") || !strings.Contains(all, "10.82.7.1/24") || !strings.Contains(all, "10.82.0.1/16") {
		t.Errorf("the bridge has %s", all)
	}
	fourth := w.pod("fourth")
	r = w.attach(fourth)
	within(t, r, "10.82.0.0/16")
	reach(after.Addrs[0])
	w.end(young)
	w.end(third)
	w.end(fourth)
}

func TestPodCIDRRefused(t *testing.T) {
	w := newWorld(t)
	w.config.Subnets = nil
	w.reopen()
	w.outside()
	for text, kind := range map[string]fault.Kind{
		"10.1.0.0/31": fault.Invalid, "127.1.0.0/16": fault.Invalid, "224.0.0.0/8": fault.Invalid, "fe80::/64": fault.Invalid, "10.1.0.0/24 10.2.0.0/24": fault.Invalid,
		"192.0.2.0/24": fault.Precondition, // the host's
	} {
		if err := w.SetPodCIDR(w.ctx, prefixes(strings.Fields(text)...)); !fault.Is(err, kind) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if err := w.SetPodCIDR(w.ctx, nil); err != nil {
		t.Error(err)
	}
	// Configured subnets stay.
	w.config.Subnets = prefixes("10.83.0.0/24")
	w.reopen()
	w.setPodCIDR("10.84.0.0/24")
	p := w.pod("p")
	within(t, w.attach(p), "10.83.0.0/24")
	w.end(p)
}

func TestTemplate(t *testing.T) {
	w := newWorld(t)
	w.config.Subnets = nil
	plugins := filepath.Join(w.dir, "bin")
	if err := os.MkdirAll(plugins, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(plugins, "demo"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.config.PluginDirs = []string{plugins}
	w.config.Template = filepath.Join(w.dir, "template")
	for text, problem := range map[string]string{
		"{{.PodCIDR": "unclosed action", "{{.Nothing}}": "can't evaluate field", "no JSON": "not JSON",
	} {
		w.write(w.config.Template, text)
		if _, err := Open(w.config); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), problem) || !strings.Contains(err.Error(), "network.cni_conf_template") {
			t.Errorf("%s: %v", text, err)
		}
	}
	w.write(w.config.Template, `["{{index .PodCIDRRanges 1}}"]`)
	if _, err := parseTemplate(w.config.Template); err != nil {
		t.Errorf("for nodes of two families: %v", err)
	}
	w.write(w.config.Template, `{"cniVersion":"1.0.0","name":"demo","plugins":[{"type":"demo","first":"{{.PodCIDR}}",
		"ranges":[{{range $i, $r := .PodCIDRRanges}}{{if $i}},{{end}}"{{$r}}"{{end}}],
		"routes":[{{range $i, $r := .Routes}}{{if $i}},{{end}}{"dst":"{{$r}}"}{{end}}]}]}`)
	w.reopen()
	w.setPodCIDR("10.85.0.0/24", "fd85::/64")
	path := filepath.Join(w.config.ConfDir, templateFile)
	text := w.read(path)
	for _, part := range []string{`"first":"10.85.0.0/24"`, `"ranges":["10.85.0.0/24","fd85::/64"]`, `"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]`} {
		if !strings.Contains(text, part) {
			t.Errorf("%s is not in %s", part, text)
		}
	}
	if c := w.choice.Load(); c.list == nil || c.file != templateFile {
		t.Errorf("chosen: %+v", c)
	}
	w.setPodCIDR("10.86.0.0/24") // davit's own is written anew
	if text := w.read(path); !strings.Contains(text, "10.86.0.0/24") {
		t.Error(text)
	}
	w.write(filepath.Join(w.config.ConfDir, "50-other.conflist"), `{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"demo"}]}`)
	w.setPodCIDR("10.87.0.0/24") // somebody else's is in force
	if text := w.read(path); !strings.Contains(text, "10.86.0.0/24") {
		t.Error(text)
	}
	if err := os.RemoveAll(w.config.ConfDir); err != nil {
		t.Fatal(err)
	}
	w.rescan(w.ctx)
}

func (w *world) write(path, text string) {
	w.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.Fatal(err)
	}
}

func (w *world) read(path string) string {
	w.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		w.Fatal(err)
	}
	return string(text)
}
