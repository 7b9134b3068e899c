// Package network connects pods: by CNI plugins where a configuration exists,
// else by the built-in bridge.
//
// It owns address leases and host ports, each written down before it is
// acquired, and its own nftables table, bridge and veths. It never touches
// another program's rules. Nothing here knows what a container is. Package pod
// calls it, once at a time for each pod.
//
// What the built-in bridge does not do: [::1]:hostPort is refused, since the
// kernel routes ::1 to the loopback alone (127.0.0.1 works); and where another
// program's FORWARD policy drops, pods reach no further than the host until
// that program lets the bridge through.
package network

import (
	"encoding/json"
	"net/netip"
	"time"
)

// A Pod is what the network needs to know of one.
type Pod struct {
	ID, Name, Namespace, UID string
	NetNS                    string // file of the pinned network namespace; may be gone at Detach
	Ports                    []Port
	Labels, Annotations      map[string]string
	CgroupParent             string
}

// A Port maps a port of the host to one of the pod.
type Port struct {
	Protocol      string     // "tcp", "udp" or "sctp"
	HostIP        netip.Addr // zero: every address of the host
	HostPort      uint16     // never 0: unmapped ports are left out
	ContainerPort uint16
}

// A Result is what Attach arranged.
type Result struct {
	Driver    string          // "bridge" or "cni"
	Interface string          // name inside the pod, "eth0"
	Addrs     []netip.Addr    // the primary first
	Raw       json.RawMessage // the CNI result, or the built-in network's in the same form
}

// Attached is a pod that Attach has connected, and how; an empty result: perhaps.
type Attached struct {
	Pod
	Result
}

// A Config says how to connect pods. Zero values take the defaults named.
type Config struct {
	Root        string         // durable state: leases; a directory of the network's own
	Damaged     string         // a directory for what cannot be read, "damaged" in Root
	ConfDir     string         // CNI configuration, "/etc/cni/net.d"
	PluginDirs  []string       // CNI plugins, "/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"
	Bridge      string         // name of the bridge and of the nftables table, "davit0"
	Subnets     []netip.Prefix // pod addresses, at most one of each family; what SetPodCIDR was given, or "10.88.0.0/16", or the next free, and a unique local /64
	DelPatience time.Duration  // how long a pod waits for a CNI DEL that fails, 10 min
	Template    string         // file of a CNI configuration template that SetPodCIDR fills in; empty: none
	MTU         int            // 0: that of the default route's link
}
