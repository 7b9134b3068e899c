package namespace

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/davit-runtime/davit/internal/testkit"
)

const procNetDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     560       8    0    0    0     0          0         0      560       8    0    0    0     0       0          0
  eth0: 18446744073709551615 17 1 2 0 0 0 0 486 5 3 4 0 0 0 0
 net1:1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
 torn: 1 2 3
`

func TestParseInterfaces(t *testing.T) {
	got := parseInterfaces([]byte(procNetDev))
	want := []Interface{
		{"eth0", Traffic{18446744073709551615, 17, 1, 2}, Traffic{486, 5, 3, 4}},
		{"net1", Traffic{1, 2, 3, 4}, Traffic{9, 10, 11, 12}},
	}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %v, want %v", got, want)
	}
}

func FuzzInterfaces(f *testing.F) {
	f.Add([]byte(procNetDev))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, i := range parseInterfaces(text) {
			if i.Name == "" || i.Name == "lo" {
				t.Errorf("an interface %q", i.Name)
			}
		}
	})
}

// What is sent between two namespaces is counted on both sides, as netlink
// counts it.
func TestInterfacesCount(t *testing.T) {
	testkit.Root(t)
	testkit.Leftovers(t).Ignore("^cgroup ")
	ctx, m := context.Background(), New()
	var files []string
	for _, name := range []string{"a", "b"} {
		dir := filepath.Join(t.TempDir(), name)
		t.Cleanup(func() { _ = m.Release(ctx, dir) })
		if err := m.Create(ctx, dir, Spec{Net: true, IPC: true, UTS: true}); err != nil {
			t.Fatal(err)
		}
		files = append(files, dir+"/net")
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "davittest0"}, PeerName: "davittest1"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"davittest0", "davittest1"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(files[i])
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := netlink.LinkSetNsFd(link, int(f.Fd())); err != nil {
			t.Fatal(err)
		}
		in(t, filepath.Dir(files[i]), func() {
			own := &net.IPNet{IP: net.IPv4(10, 9, 8, byte(i+1)), Mask: net.CIDRMask(24, 32)}
			err = errors.Join(netlink.AddrAdd(link, &netlink.Addr{IPNet: own}), netlink.LinkSetUp(link))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	files = append(files, filepath.Join(t.TempDir(), "gone"))
	const packets, bytes = 100, 1000
	var got [][]Interface
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		in(t, filepath.Dir(files[0]), func() {
			conn, err := net.Dial("udp", "10.9.8.2:9")
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, _ = conn.Write(make([]byte, bytes)) // nobody listens: some are refused, and lost until the link is up
		})
		var err error
		got, err = Interfaces(files)
		if err != nil || len(got) != 3 || len(got[0]) != 1 || len(got[1]) != 1 || got[2] != nil {
			t.Fatalf("got %v, %v", got, err)
		}
		if got[0][0].Tx.Bytes > packets*bytes && got[1][0].Rx.Bytes > packets*bytes {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not counted: %v", got)
		}
	}
	for i, name := range []string{"davittest0", "davittest1"} {
		in(t, filepath.Dir(files[i]), func() {
			link, err := netlink.LinkByName(name)
			if err != nil {
				t.Error(err)
				return
			}
			s := link.Attrs().Statistics // read a moment later: it may only have grown
			g := got[i][0]
			if g.Name != name || g.Rx.Bytes > s.RxBytes || g.Tx.Bytes > s.TxBytes || g.Rx.Bytes+1000 < s.RxBytes || g.Tx.Bytes+1000 < s.TxBytes {
				t.Errorf("%v, netlink says received %d, sent %d", g, s.RxBytes, s.TxBytes)
			}
		})
	}
}
