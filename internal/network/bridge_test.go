package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/namespace"
)

func TestResultHasCNIForm(t *testing.T) {
	w := newWorld(t)
	p := w.pod("a")
	r := w.attach(p)
	parsed, err := create.CreateFromBytes(r.Raw)
	if err != nil {
		t.Fatal(err)
	}
	got, err := addresses(parsed, r.Interface)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(r.Addrs) || r.Driver != "bridge" || r.Interface != "eth0" {
		t.Errorf("got %v, %v of %s", got, err, r.Raw)
	}
	var form struct {
		Interfaces []struct{ Name, Mac, Sandbox string }
		IPs        []struct{ Address, Gateway string }
		Routes     []struct{ Dst, Gw string }
	}
	if err := json.Unmarshal(r.Raw, &form); err != nil {
		t.Fatal(err)
	}
	if len(form.Interfaces) != 3 || form.Interfaces[2].Sandbox != p.NetNS || len(form.IPs) != 2 || form.IPs[0].Gateway != "10.77.0.1" ||
		len(form.Routes) != 2 || form.Routes[0].Dst != "0.0.0.0/0" || form.Routes[1].Dst != "::/0" {
		t.Errorf("got %s", r.Raw)
	}
}

func TestHostPortTaken(t *testing.T) {
	w := newWorld(t)
	a := w.pod("a", Port{Protocol: "tcp", HostPort: 80, ContainerPort: 80})
	b := w.pod("b", Port{Protocol: "tcp", HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 80, ContainerPort: 80})
	w.attach(a)
	_, err := w.Attach(w.ctx, b)
	if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "127.0.0.1:80") || !strings.Contains(err.Error(), "default/a") {
		t.Errorf("got %v, want Precondition naming port and owner", err)
	}
	w.end(a)
	w.attach(b)
	if _, err := w.Attach(w.ctx, b); !fault.Is(err, fault.Exists) {
		t.Errorf("attached twice: %v", err)
	}
}

// Every kind of trouble in Attach leaves what one Detach removes.
func TestAttachFails(t *testing.T) {
	w := newWorld(t)
	gone := Pod{ID: "gone", Name: "gone", NetNS: w.dir + "/none"}
	if _, err := w.Attach(w.ctx, gone); !fault.Is(err, fault.Precondition) {
		t.Errorf("no namespace: %v", err)
	}
	plain := Pod{ID: "plain", Name: "plain", NetNS: w.dir + "/plain"}
	writeFile(t, plain.NetNS, "")
	if _, err := w.Attach(w.ctx, plain); err == nil {
		t.Error("a plain file as a namespace: no error")
	}
	for _, p := range []Pod{gone, plain, {ID: "never"}} {
		for range 2 {
			if err := w.Detach(w.ctx, p); err != nil {
				t.Errorf("detach %s: %v", p.ID, err)
			}
		}
	}
	if left := w.leaseFiles(); len(left) > 0 {
		t.Errorf("leases left: %v", left)
	}
	if _, err := w.Attach(w.ctx, Pod{ID: "../x"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("an ID that is a path: %v", err)
	}
	ctx, cancel := context.WithCancel(w.ctx)
	cancel()
	if _, err := w.Attach(ctx, gone); !fault.Is(err, fault.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// The program dies anywhere; the leases tell the next one what to undo.
func TestCrash(t *testing.T) {
	w := newWorld(t)
	outside := w.outside()
	kept := w.pod("kept", Port{Protocol: "tcp", HostPort: 8001, ContainerPort: 80})
	lost := w.pod("lost", Port{Protocol: "tcp", HostPort: 8002, ContainerPort: 80})
	w.attach(kept)
	w.attach(lost)
	w.serve(kept, 80)
	// A lease, and nothing else of it.
	if _, err := w.leases.take(newLease(Pod{ID: "only-lease", Ports: []Port{{Protocol: "udp", HostPort: 1, ContainerPort: 1}}}, driverBridge)); err != nil {
		t.Fatal(err)
	}
	writeFile(t, w.config.Root+"/torn.json", `{"vers`) // by a power cut
	writeFile(t, w.config.Root+"/.x.json.123", `{`)    // a write cut short
	stray := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "dvstray"}, PeerName: "dvstray2"}
	if err := netlink.LinkAdd(stray); err != nil {
		t.Fatal(err)
	}
	br, _ := netlink.LinkByName("davit0")
	if err := netlink.LinkSetMaster(stray, br); err != nil {
		t.Fatal(err)
	}
	// Somebody takes the table away while nobody looks.
	if err := w.rules.remove(); err != nil {
		t.Fatal(err)
	}

	w.reopen()
	if err := w.Collect(w.ctx, attached(kept.ID)); err != nil {
		t.Fatal(err)
	}
	if left := w.leaseFiles(); len(left) != 1 || !strings.HasSuffix(left[0], kept.ID+".json") {
		t.Errorf("leases: %v, want that of the pod kept", left)
	}
	if _, err := w.ask(outside, "tcp", "192.0.2.1:8001"); err != nil {
		t.Errorf("the host port of the pod kept: %v", err)
	}
	again := w.pod("again", Port{Protocol: "tcp", HostPort: 8002, ContainerPort: 80}) // free again
	w.attach(again)
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	await(t, "the stray link to go", func() bool { _, err := netlink.LinkByName("dvstray"); return err != nil })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Whoever flushes nftables or deletes the bridge does not end pods' service.
func TestRestoredWhileRunning(t *testing.T) {
	w := newWorld(t)
	a := w.pod("a", Port{Protocol: "tcp", HostPort: 8001, ContainerPort: 80})
	w.attach(a)
	w.serve(a, 80)
	ensure := func(what string) {
		w.bridge.check()
		if err := w.restore(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if _, err := w.ask(host, "tcp", "127.0.0.1:8001"); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.FlushTable(w.rules.table()) // the rules go, the elements stay
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	ensure("flushed")
	c.DelTable(w.rules.table())
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	ensure("deleted")
	if err := w.bridge.destroy(); err != nil {
		t.Fatal(err)
	}
	ensure("without a bridge")
	// Opening a port notices at once.
	c.DelTable(w.rules.table())
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	b := w.pod("b", Port{Protocol: "tcp", HostPort: 8002, ContainerPort: 80})
	w.attach(b)
	w.serve(b, 80)
	for _, port := range []string{"8001", "8002"} {
		if _, err := w.ask(host, "tcp", "127.0.0.1:"+port); err != nil {
			t.Errorf("port %s: %v", port, err)
		}
	}
	// So does connecting a pod, of the bridge.
	if err := w.bridge.destroy(); err != nil {
		t.Fatal(err)
	}
	w.bridge.made = master{index: 12345, mtu: 1500}
	d := w.pod("d", Port{Protocol: "tcp", HostPort: 8003, ContainerPort: 80})
	w.attach(d)
	w.serve(d, 80)
	if _, err := w.ask(host, "tcp", "127.0.0.1:8003"); err != nil {
		t.Errorf("after the bridge was deleted: %v", err)
	}
	ensure("the others, then")
}

// A process may keep a namespace alive after its pod: its address and port go
// to the next pod nevertheless.
func TestAddressOfPinnedNamespaceIsUsable(t *testing.T) {
	w := newWorld(t)
	w.config.Subnets = []netip.Prefix{netip.MustParsePrefix("10.78.0.0/30")} // room for one pod
	w.reopen()
	old := w.pod("old")
	r1 := w.attach(old)
	w.serve(old, 80)
	if _, err := w.ask(host, "tcp", r1.Addrs[0].String()+":80"); err != nil {
		t.Fatal(err)
	}
	b := w.pod("new")
	if _, err := w.Attach(w.ctx, b); !fault.Is(err, fault.Exhausted) {
		t.Errorf("a full subnet: %v", err)
	}
	if err := w.Detach(w.ctx, old); err != nil { // but its namespace, and server, stay
		t.Fatal(err)
	}
	r2 := w.attach(b)
	if r1.Addrs[0] != r2.Addrs[0] {
		t.Fatalf("got %v, want %v again", r2.Addrs, r1.Addrs)
	}
	_, err := w.ask(host, "tcp", r2.Addrs[0].String()+":80")
	if !errors.Is(err, syscall.ECONNREFUSED) { // nobody listens in the new pod
		t.Errorf("got %v, want refused by the new pod", err)
	}
	w.serve(b, 80)
	if _, err := w.ask(host, "tcp", r2.Addrs[0].String()+":80"); err != nil {
		t.Errorf("the new pod: %v", err)
	}
}

func TestManyComeAndGo(t *testing.T) {
	w := newWorld(t)
	foreign(t, "table ip other { chain c { type nat hook postrouting priority 100; policy accept; ip saddr 203.0.113.1 drop; }; }")
	before := listRuleset(t)
	const at = 4
	total := 300
	if testing.Short() {
		total = 100
	}
	todo := make(chan int)
	done := make(chan error, total)
	for range at {
		go func() {
			for i := range todo {
				p := Pod{ID: fmt.Sprintf("pod-%d", i), NetNS: fmt.Sprintf("%s/pods/%d/net", w.dir, i), Ports: []Port{
					{Protocol: []string{"tcp", "udp", "sctp"}[i%3], HostPort: uint16(10000 + i), ContainerPort: 80}}}
				dir := fmt.Sprintf("%s/pods/%d", w.dir, i)
				err := namespace.New().Create(w.ctx, dir, namespace.Spec{Net: true})
				if err == nil {
					_, err = w.Attach(w.ctx, p)
				}
				done <- errors.Join(err, w.Detach(w.ctx, p), namespace.New().Release(w.ctx, dir))
			}
		}()
	}
	for i := range total {
		todo <- i
	}
	close(todo)
	for range total {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if left := w.leaseFiles(); len(left) > 0 {
		t.Errorf("leases left: %v", left)
	}
	for _, s := range w.rules.maps() {
		c, _ := nftables.New()
		if have, err := c.GetSetElements(s); err != nil || len(have) > 0 {
			t.Errorf("elements left in %s: %v, %v", s.Name, have, err)
		}
	}
	if err := w.Destroy(w.ctx); err != nil {
		t.Error(err)
	}
	if after := listRuleset(t); after != before {
		t.Errorf("other tables have changed:\n%s\nwere:\n%s", after, before)
	}
}

// More elements than one message, or its answers, have room for.
func TestManyPorts(t *testing.T) {
	w := newWorld(t)
	var ports []Port
	for i := range 5000 {
		ports = append(ports, Port{Protocol: "tcp", HostPort: uint16(1000 + i), ContainerPort: 80})
	}
	p := w.pod("a", ports...)
	w.attach(p)
	count := func() int {
		have, err := w.rules.conn.GetSetElements(w.rules.maps()["ports4"])
		if err != nil {
			t.Fatal(err)
		}
		return len(have)
	}
	if got := count(); got != len(ports) {
		t.Errorf("%d elements, want %d", got, len(ports))
	}
	w.end(p)
	if got := count(); got != 0 {
		t.Errorf("%d elements left", got)
	}
	w.attach(w.pod("b", ports...)) // now as additions to the table
	if got := count(); got != len(ports) {
		t.Errorf("%d elements, want %d", got, len(ports))
	}
}

func TestSubnetInUse(t *testing.T) {
	w := newWorld(t)
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "other0"}}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(link)
	addr, _ := netlink.ParseAddr("10.77.3.1/24")
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	p := w.pod("a")
	_, err := w.Attach(w.ctx, p)
	if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "other0") {
		t.Errorf("got %v, want Precondition naming the link", err)
	}
	if err := w.Status(); err == nil || !strings.Contains(err.Error(), "other0") {
		t.Errorf("status: %v", err)
	}
	w.end(p)
	if err := netlink.AddrDel(link, addr); err != nil {
		t.Fatal(err)
	}
	if err := w.restore(); err != nil || w.Status() != nil {
		t.Errorf("once free: %v, %v", err, w.Status())
	}
}

// Rules as nft prints them, so that a person can judge them too.
func TestRulesAsText(t *testing.T) {
	w := newWorld(t)
	w.attach(w.pod("a", Port{Protocol: "sctp", HostPort: 7777, ContainerPort: 77}))
	got := listRuleset(t)
	for _, want := range []string{
		"table inet davit0",
		"sctp . 7777 : 10.77.0.2 . 77",
		"sctp . 7777 : fd77::2 . 77",
		`ip saddr 10.77.0.0/16 oifname != "davit0" masquerade`,
		`ip6 saddr fd77::/64 oifname != "davit0" masquerade`,
		"type nat hook output priority",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("missing %q", want)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
}

// With nothing configured: addresses that this host does not use, and the same
// again after a restart.
func TestDefaultSubnets(t *testing.T) {
	w := newWorld(t)
	taken := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "podman0"}}
	if err := netlink.LinkAdd(taken); err != nil {
		t.Fatal(err)
	}
	addr, _ := netlink.ParseAddr("10.88.0.1/16")
	if err := netlink.AddrAdd(taken, addr); err != nil {
		t.Fatal(err)
	}
	w.config.Subnets = nil
	w.reopen()
	r := w.attach(w.pod("a"))
	if len(r.Addrs) != 2 || r.Addrs[0].String() != "10.89.0.2" || !r.Addrs[1].IsPrivate() {
		t.Errorf("got %v", r.Addrs)
	}
	if err := netlink.LinkDel(taken); err != nil {
		t.Fatal(err)
	}
	w.reopen()
	if r := w.attach(w.pod("b")); r.Addrs[0].String() != "10.89.0.3" {
		t.Errorf("after a restart: %v", r.Addrs)
	}
}

func foreign(t *testing.T, rules string) {
	t.Helper()
	if out, err := exec.Command("nft", rules).CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("nft", "delete table ip other").Run() })
}

func listRuleset(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	return string(out)
}

func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// go test -bench Attach -run - -benchtime 200x ./internal/network
func BenchmarkAttach(b *testing.B) {
	for _, ports := range []int{0, 1} {
		b.Run(fmt.Sprintf("ports=%d", ports), func(b *testing.B) {
			w := newWorld(b)
			var mapped []Port
			for i := range ports {
				mapped = append(mapped, Port{Protocol: "tcp", HostPort: uint16(1000 + i), ContainerPort: 80})
			}
			w.attach(w.pod("first")) // makes bridge and table
			var attach, detach []time.Duration
			for b.Loop() {
				p := w.pod(fmt.Sprint("bench", len(attach)), mapped...)
				began := time.Now()
				w.attach(p)
				attach = append(attach, time.Since(began))
				began = time.Now()
				if err := w.Detach(w.ctx, p); err != nil {
					b.Fatal(err)
				}
				detach = append(detach, time.Since(began))
				w.end(p)
			}
			for name, took := range map[string][]time.Duration{"attach": attach, "detach": detach} {
				slices.Sort(took)
				b.ReportMetric(float64(took[0].Microseconds()), name+"-min-µs")
				b.ReportMetric(float64(took[len(took)/2].Microseconds()), name+"-median-µs")
			}
			b.ReportMetric(0, "ns/op") // with the namespaces' making, of no interest
		})
	}
}
