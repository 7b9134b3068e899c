package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/testkit"
)

// A flow is a request, and what its server is to see.
type flow struct {
	from     Pod
	protocol string
	to       string
	seen     string // the client's address, or refused
}

const refused = "refused"

// With br_netfilter, which Kubernetes used to demand, bridged packets pass the
// rules as well, and differently; without, they do not.
func TestBridgeCarriesEverything(t *testing.T) {
	testkit.Root(t)
	for _, netfilter := range []string{"0", "1"} {
		t.Run("bridge-nf-call="+netfilter, func(t *testing.T) { carriesEverything(t, netfilter) })
	}
}

func carriesEverything(t *testing.T, netfilter string) {
	w := newWorld(t)
	for _, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
		err := setSysctl("net/bridge/"+name, netfilter)
		if err != nil && (netfilter == "1" || !errors.Is(err, os.ErrNotExist)) {
			t.Fatal(err)
		}
	}
	outside := w.outside()
	a := w.pod("a")
	b := w.pod("b", Port{Protocol: "tcp", HostPort: 18080, ContainerPort: 8080}, Port{Protocol: "udp", HostPort: 18080, ContainerPort: 8080},
		Port{Protocol: "tcp", HostIP: netip.MustParseAddr("192.0.2.1"), HostPort: 18081, ContainerPort: 8080},
		Port{Protocol: "tcp", HostIP: netip.MustParseAddr("2001:db8::1"), HostPort: 18081, ContainerPort: 8080},
		Port{Protocol: "tcp", HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 18082, ContainerPort: 8080},
		Port{Protocol: "tcp", HostIP: netip.IPv4Unspecified(), HostPort: 18083, ContainerPort: 8080})
	ra, rb := w.attach(a), w.attach(b)
	w.serve(b, 8080)
	w.serve(outside, 9090)
	a4, a6, b4, b6 := ra.Addrs[0].String(), ra.Addrs[1].String(), rb.Addrs[0].String(), rb.Addrs[1].String()
	tests := []flow{
		{a, "tcp", b4 + ":8080", a4},
		{a, "tcp", "[" + b6 + "]:8080", a6},
		{a, "udp", b4 + ":8080", a4},
		{host, "tcp", b4 + ":8080", "10.77.0.1"},
		{host, "tcp", "[" + b6 + "]:8080", "fd77::1"},
		{a, "tcp", "192.0.2.2:9090", "192.0.2.1"}, // masqueraded
		{a, "tcp", "[2001:db8::2]:9090", "2001:db8::1"},
		{a, "udp", "192.0.2.2:9090", "192.0.2.1"},

		{outside, "tcp", "192.0.2.1:18080", "192.0.2.2"}, // the client's address is kept
		{outside, "udp", "192.0.2.1:18080", "192.0.2.2"},
		{outside, "tcp", "[2001:db8::1]:18080", "2001:db8::2"},
		{outside, "udp", "[2001:db8::1]:18080", "2001:db8::2"},
		{host, "tcp", "127.0.0.1:18080", "10.77.0.1"},
		{host, "udp", "127.0.0.1:18080", "10.77.0.1"},
		{host, "tcp", "192.0.2.1:18080", "192.0.2.1"},
		{host, "udp", "192.0.2.1:18080", "192.0.2.1"},
		{host, "tcp", "[2001:db8::1]:18080", "2001:db8::1"},
		{host, "tcp", "[::1]:18080", refused}, // not lost: it fails at once
		{a, "tcp", "192.0.2.1:18080", "10.77.0.1"},
		{a, "udp", "192.0.2.1:18080", "10.77.0.1"},
		{a, "tcp", "10.77.0.1:18080", "10.77.0.1"},
		{a, "tcp", "[2001:db8::1]:18080", "fd77::1"},
		{b, "tcp", "192.0.2.1:18080", "10.77.0.1"}, // itself, by hairpin
		{b, "udp", "192.0.2.1:18080", "10.77.0.1"},
		{b, "tcp", "[2001:db8::1]:18080", "fd77::1"},

		{outside, "tcp", "192.0.2.1:18081", "192.0.2.2"},
		{outside, "tcp", "[2001:db8::1]:18081", "2001:db8::2"},
		{host, "tcp", "127.0.0.1:18081", refused}, // bound to another address
		{host, "tcp", "127.0.0.1:18082", "10.77.0.1"},
		{outside, "tcp", "192.0.2.1:18082", refused},
		{outside, "tcp", "192.0.2.1:18083", "192.0.2.2"},
		{outside, "tcp", "[2001:db8::1]:18083", refused}, // 0.0.0.0 is IPv4
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.from.Name, "/", tt.protocol, "/", tt.to), func(t *testing.T) {
			from, err := w.ask(tt.from, tt.protocol, tt.to)
			if tt.seen == refused {
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("got %v, %v, want refused", from, err)
				}
				return
			}
			if err != nil || from.String() != tt.seen {
				t.Errorf("the server saw %v (%v), want %s", from, err, tt.seen)
			}
		})
	}
	if err := w.Check(w.ctx, b); err != nil {
		t.Errorf("check: %v", err)
	}
	w.end(b)
	if _, err := w.ask(host, "tcp", "127.0.0.1:18080"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the pod: %v, want refused", err)
	}
	if err := w.Check(w.ctx, b); !fault.Is(err, fault.NotFound) {
		t.Errorf("check after the pod: %v", err)
	}
}

// A pod must not reach what listens on the host's loopback, route_localnet or not.
func TestPodCannotReachHostLoopback(t *testing.T) {
	w := newWorld(t)
	a := w.pod("a")
	w.attach(a)
	w.serve(host, 9191)
	err := w.inside(a, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		own, _ := netlink.ParseAddr("127.0.0.1/8")
		if err := netlink.AddrDel(lo, own); err != nil {
			return err
		}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0); err != nil {
			return err
		}
		_, dst, _ := net.ParseCIDR("127.0.0.0/8")
		return netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: dst, Gw: gateway(w.config.Subnets[0]).AsSlice()})
	})
	if err != nil {
		t.Fatal(err)
	}
	if from, err := w.ask(a, "tcp", "127.0.0.1:9191"); err == nil {
		t.Errorf("the pod reached the host's 127.0.0.1, seen as %v", from)
	}
}

// A UDP client that never pauses keeps its flow alive in the kernel; it must
// reach the pod that has the host port now.
func TestUDPClientFollowsThePort(t *testing.T) {
	w := newWorld(t)
	outside := w.outside()
	port := Port{Protocol: "udp", HostPort: 5353, ContainerPort: 53}
	first := w.pod("first")
	w.attach(first) // so that connections are tracked
	var c net.Conn
	err := w.inside(outside, func() (err error) {
		c, err = net.Dial("udp", "192.0.2.1:5353")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("nobody there yet"))
	for _, name := range []string{"old", "new"} {
		p := w.pod(name, port)
		w.attach(p)
		w.serve(p, 53)
		var buf [64]byte
		n := 0
		for range 3 { // an ICMP error of before may come first
			_, _ = c.Write([]byte("hello"))
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			if n, err = c.Read(buf[:]); err == nil {
				break
			}
		}
		if err != nil || !strings.HasPrefix(string(buf[:n]), "192.0.2.2:") {
			t.Errorf("%s: %q, %v", name, buf[:n], err)
		}
		w.end(p)
	}
}
