package network

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/davit-runtime/davit/internal/fault"
)

func TestPool(t *testing.T) {
	p, err := newPool(netip.MustParsePrefix("10.0.0.7/29")) // .1 is the gateway's, .7 the broadcast address
	if err != nil {
		t.Fatal(err)
	}
	take := func(want string) {
		t.Helper()
		a, ok := p.take()
		if got := a.String(); ok && got != want || !ok && want != "" {
			t.Fatalf("took %s, %v, want %q", got, ok, want)
		}
	}
	take("10.0.0.2")
	take("10.0.0.3")
	delete(p.used, netip.MustParseAddr("10.0.0.2"))
	take("10.0.0.4") // .2 rests
	take("10.0.0.5")
	take("10.0.0.6")
	take("10.0.0.2")
	take("")
	delete(p.used, netip.MustParseAddr("10.0.0.4"))
	take("10.0.0.4")

	p, _ = newPool(netip.MustParsePrefix("fd00::/126"))
	p.mark(netip.MustParseAddr("fd00::2")) // from a lease
	p.mark(netip.MustParseAddr("10.0.0.2"))
	take("fd00::3") // IPv6 has no broadcast address
	take("")

	for _, bad := range []string{"10.0.0.0/31", "10.0.0.0/32", "fd00::/127"} {
		if _, err := newPool(netip.MustParsePrefix(bad)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want Invalid", bad, err)
		}
	}
	if _, err := newPool(netip.Prefix{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("no subnet: %v, want Invalid", err)
	}
}

func TestConflict(t *testing.T) {
	port := func(s string) Port {
		protocol, rest, _ := strings.Cut(s, " ")
		ap, err := netip.ParseAddrPort(rest)
		if err != nil {
			ap = netip.AddrPortFrom(netip.Addr{}, netip.MustParseAddrPort("0.0.0.0:"+rest).Port())
		}
		return Port{Protocol: protocol, HostIP: ap.Addr(), HostPort: ap.Port(), ContainerPort: 1}
	}
	tests := []struct {
		a, b string
		want bool
	}{
		{"tcp 80", "tcp 80", true},
		{"tcp 80", "udp 80", false},
		{"tcp 80", "tcp 81", false},
		{"tcp 80", "tcp 127.0.0.1:80", true},
		{"tcp 80", "tcp [fd00::1]:80", true},
		{"tcp 0.0.0.0:80", "tcp 127.0.0.1:80", true},
		{"tcp 0.0.0.0:80", "tcp [fd00::1]:80", false},
		{"tcp 0.0.0.0:80", "tcp [::]:80", false},
		{"tcp [::]:80", "tcp [fd00::1]:80", true},
		{"tcp 127.0.0.1:80", "tcp 127.0.0.1:80", true},
		{"tcp 127.0.0.1:80", "tcp 127.0.0.2:80", false},
		{"tcp [::ffff:127.0.0.1]:80", "tcp 127.0.0.1:80", true},
	}
	for _, tt := range tests {
		for _, pair := range [][2]string{{tt.a, tt.b}, {tt.b, tt.a}} {
			if _, got := conflict([]Port{port(pair[0])}, []Port{port(pair[1])}); got != tt.want {
				t.Errorf("%s and %s: %v", pair[0], pair[1], got)
			}
		}
	}
}

func TestCheckPorts(t *testing.T) {
	good := Port{Protocol: "tcp", HostPort: 80, ContainerPort: 8080}
	if got, err := checkPorts([]Port{good, good}); err != nil || len(got) != 1 {
		t.Errorf("a repetition: %v, %v", got, err)
	}
	for reason, ports := range map[string][]Port{
		"protocol":  {{Protocol: "icmp", HostPort: 80, ContainerPort: 80}},
		"may be 0":  {{Protocol: "tcp", HostPort: 80}},
		"goes to":   {good, {Protocol: "tcp", HostPort: 80, ContainerPort: 8081}},
		"127.0.0.1": {{Protocol: "tcp", HostIP: netip.IPv6Loopback(), HostPort: 80, ContainerPort: 80}},
	} {
		if _, err := checkPorts(ports); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), reason) {
			t.Errorf("got %v, want Invalid with %q", err, reason)
		}
	}
}

func TestFirstFree(t *testing.T) {
	for taken, want := range map[string]string{
		"":               "10.88.0.0/16",
		"192.168.1.0/24": "10.88.0.0/16",
		"10.88.7.0/24":   "10.89.0.0/16",
		"10.88.0.0/15":   "10.90.0.0/16",
		"10.0.0.0/8":     "10.88.0.0/16", // all are: the first, which the bridge then refuses
	} {
		var prefixes []netip.Prefix
		if taken != "" {
			prefixes = append(prefixes, netip.MustParsePrefix(taken))
		}
		if got := firstFree(prefixes); got.String() != want {
			t.Errorf("%q taken: %s, want %s", taken, got, want)
		}
	}
}

func TestElements(t *testing.T) {
	addrs := []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}
	tests := []struct {
		hostIP string
		sets   string
	}{
		{"", "ports4 ports6"},
		{"0.0.0.0", "ports4"},
		{"::", "ports6"},
		{"192.0.2.1", "addrports4"},
		{"2001:db8::1", "addrports6"},
	}
	for _, tt := range tests {
		p := Port{Protocol: "sctp", HostPort: 0x1234, ContainerPort: 0x5678}
		if tt.hostIP != "" {
			p.HostIP = netip.MustParseAddr(tt.hostIP)
		}
		var sets []string
		for _, e := range elements(addrs, []Port{p}) {
			sets = append(sets, e.set)
			m := (&ruleset{bridge: "x"}).maps()[e.set]
			if len(e.key) != int(m.KeyType.Bytes) || len(e.val) != int(m.DataType.Bytes) {
				t.Errorf("%s: key of %d, value of %d bytes, want %d and %d", e.set, len(e.key), len(e.val), m.KeyType.Bytes, m.DataType.Bytes)
			}
		}
		if got := strings.Join(sets, " "); got != tt.sets {
			t.Errorf("%q: %s, want %s", tt.hostIP, got, tt.sets)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	tests := []struct {
		config Config
		reason string
	}{
		{Config{Bridge: "a/b"}, "name of a link"},
		{Config{Bridge: "0123456789abcdef"}, "name of a link"},
		{Config{Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")}}, "one of each family"},
		{Config{Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/31")}}, "no room for pods"},
	}
	for _, tt := range tests {
		tt.config.Root = t.TempDir()
		if _, err := Open(tt.config); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tt.reason) {
			t.Errorf("got %v, want Invalid with %q", err, tt.reason)
		}
	}
}

// What is listed while others change it is listed again.
func TestUncut(t *testing.T) {
	tries := 0
	got, err := uncut(func() ([]int, error) {
		if tries++; tries < 3 {
			return []int{1}, netlink.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	})
	if err != nil || len(got) != 2 || tries != 3 {
		t.Errorf("%v, %v after %d tries", got, err, tries)
	}
	if _, err := uncut(func() ([]int, error) { return nil, netlink.ErrDumpInterrupted }); err == nil {
		t.Error("what never stands still is no error")
	}
}
