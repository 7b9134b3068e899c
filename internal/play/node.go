package play

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// Node is what a pod may learn about the machine it runs on.
type Node struct {
	Name        string
	IP          string
	CPUs        int64
	MemoryBytes int64
}

// ThisNode describes this machine as a kubelet would.
func ThisNode() (Node, error) {
	name, err := os.Hostname()
	if err != nil {
		return Node{}, fmt.Errorf("read the host's name: %w", err)
	}
	memory, err := memTotal()
	if err != nil {
		return Node{}, err
	}
	return Node{Name: strings.ToLower(name), IP: hostIP(), CPUs: int64(runtime.NumCPU()), MemoryBytes: memory}, nil
}

// hostIP returns the address that faces the default route, or loopback.
func hostIP() string {
	for _, probe := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} { // RFC 5737, RFC 3849; UDP sends nothing
		if conn, err := net.Dial("udp", probe); err == nil {
			addr := conn.LocalAddr().(*net.UDPAddr)
			_ = conn.Close()
			return addr.IP.String()
		}
	}
	return "127.0.0.1"
}

// memTotal reads the machine's memory. man 5 proc_meminfo.
func memTotal() (int64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(data) {
		if f := strings.Fields(string(line)); len(f) == 3 && f[0] == "MemTotal:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no MemTotal")
}
