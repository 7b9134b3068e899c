package server_test

import (
	"encoding/base64"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/testkit"
)

// Many containers that have written something: keeper and monitor together.
func TestMemory(t *testing.T) {
	n := newNode(t)
	count := rounds(100)
	for range count {
		c := n.container("crun", "sh", "-c", "echo hello; exec sleep 1000")
		n.run(c)
	}
	time.Sleep(time.Second)
	keeper, err := testkit.PSS(n.process("keep"))
	must(t, err)
	serve, err := testkit.PSS(n.process("serve"))
	must(t, err)
	t.Logf("PSS with %d containers: keeper %d kB, monitor %d kB", count, keeper>>10, serve>>10)
	if keeper+serve > 20<<20 && os.Getenv("DAVIT_RACE") == "" {
		t.Errorf("keeper and monitor use %d kB", (keeper+serve)>>10)
	}
}

func BenchmarkLife(b *testing.B) {
	for _, mode := range []string{"no seccomp", "seccomp", "ready seccomp"} {
		b.Run(mode, func(b *testing.B) {
			n := newNode(b)
			c := n.container("crun", "true")
			s := spec(n.rootfs, c.ID, []string{"sleep", "1000"})
			s.Process.Capabilities = &specs.LinuxCapabilities{}
			profile, err := seccomp.GetDefaultProfile(s)
			must(b, err)
			if mode != "no seccomp" {
				s.Linux.Seccomp = profile
			}
			if mode == "ready seccomp" {
				program, err := n.Seccomp(n.ctx(), c.Runtime, profile)
				must(b, err)
				s.Annotations = map[string]string{"run.oci.seccomp_bpf_data": base64.StdEncoding.EncodeToString(program)}
			}
			n.writeSpec(c, s)
			create, rest := time.Duration(0), time.Duration(0)
			for b.Loop() {
				begin := time.Now()
				_, err := n.Create(n.ctx(), c)
				must(b, err)
				create += time.Since(begin)
				must(b, n.Start(n.ctx(), c.ID))
				rest += time.Since(begin)
				n.remove(c.ID)
			}
			b.ReportMetric(float64(create.Microseconds())/float64(b.N)/1000, "ms/create")
			b.ReportMetric(float64(rest.Microseconds())/float64(b.N)/1000, "ms/create+start")
		})
	}
}

func BenchmarkHold(b *testing.B) {
	n := newNode(b)
	h := monitor.Holder{ID: newID(), Namespaces: []string{fmt.Sprintf("/proc/%d/ns/net", os.Getpid())}}
	var hold time.Duration
	var pss int64
	for b.Loop() {
		begin := time.Now()
		pid, err := n.Hold(n.ctx(), h)
		hold += time.Since(begin)
		must(b, err)
		await(b, "holder", func() bool {
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			return string(name) == "pause\n"
		})
		pss, err = testkit.PSS(pid)
		must(b, err)
		n.remove(h.ID)
	}
	b.ReportMetric(float64(hold.Microseconds())/float64(b.N)/1000, "ms/hold")
	b.ReportMetric(float64(pss>>10), "kB")
}

// Lines of 100 bytes, as fast as they come.
func BenchmarkLog(b *testing.B) {
	n := newNode(b)
	c := n.container("crun", "sh", "-c", "while [ ! -e /tmp/go ]; do usleep 1000; done; yes 123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789 | dd bs=64k count=4096 iflag=fullblock 2>/dev/null")
	n.run(c)
	for b.Loop() {
		begin := cpu(b, n.process("serve"))
		must(b, os.WriteFile(n.rootfs+"/tmp/go", nil, 0o600))
		n.exit(c.ID)
		b.ReportMetric((cpu(b, n.process("serve"))-begin).Seconds()*float64(1<<30)/float64(4096*65536), "cpu-s/GiB")
	}
}

// cpu is the processor time a process has used.
func cpu(b *testing.B, pid int) time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(b, err)
	f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}
