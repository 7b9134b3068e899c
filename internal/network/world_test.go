package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/namespace"
	"github.com/davit-runtime/davit/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// A world is a host (the test's own private network namespace), a network,
// and pods that are nothing but pinned namespaces.
type world struct {
	testing.TB
	ctx context.Context
	dir string
	*Network
	config Config
}

func newWorld(t testing.TB) *world {
	t.Helper()
	testkit.Root(t)
	testkit.Leftovers(t).Ignore("^cgroup ") // nothing here makes one, but others on the machine do
	w := &world{TB: t, ctx: context.Background(), dir: t.TempDir()}
	w.config = Config{
		Root: filepath.Join(w.dir, "root"), ConfDir: filepath.Join(w.dir, "net.d"),
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")},
	}
	w.reopen()
	t.Cleanup(func() {
		if err := w.Collect(w.ctx, nil); err != nil {
			t.Errorf("collect: %v", err)
		}
		pods, _ := filepath.Glob(filepath.Join(w.dir, "pods", "*"))
		for _, p := range pods {
			if err := namespace.New().Release(w.ctx, p); err != nil {
				t.Error(err)
			}
		}
		if err := w.Destroy(w.ctx); err != nil {
			t.Errorf("destroy: %v", err)
		}
		w.Close()
		if left := w.leaseFiles(); len(left) > 0 {
			t.Errorf("leases left: %v", left)
		}
	})
	return w
}

// reopen is what a restart of the program does.
func (w *world) reopen() {
	w.Helper()
	if w.Network != nil {
		w.Close()
	}
	n, err := Open(w.config)
	if err != nil {
		w.Fatal(err)
	}
	w.Network = n
}

func (w *world) leaseFiles() []string {
	left, _ := filepath.Glob(filepath.Join(w.config.Root, "*.json"))
	return left
}

// pod makes a pod's namespace, attached to nothing.
func (w *world) pod(name string, ports ...Port) Pod {
	w.Helper()
	dir := filepath.Join(w.dir, "pods", name)
	if err := namespace.New().Create(w.ctx, dir, namespace.Spec{Net: true}); err != nil {
		w.Fatal(err)
	}
	return Pod{ID: name + "-0123456789abcdef", Name: name, Namespace: "default", UID: "uid-" + name,
		NetNS: filepath.Join(dir, "net"), Ports: ports}
}

func (w *world) attach(p Pod) Result {
	w.Helper()
	r, err := w.Attach(w.ctx, p)
	if err != nil {
		w.Fatal(err)
	}
	return r
}

// end is what the pod package does with a pod that goes.
func (w *world) end(p Pod) {
	w.Helper()
	if err := w.Detach(w.ctx, p); err != nil {
		w.Fatal(err)
	}
	if err := namespace.New().Release(w.ctx, filepath.Dir(p.NetNS)); err != nil {
		w.Fatal(err)
	}
}

// outside joins another host to this one, by 192.0.2.0/24 and 2001:db8::/64;
// the host is .1, the other .2. It has no route to the pods.
func (w *world) outside() Pod {
	w.Helper()
	o := w.pod("outside")
	ns, err := netns.GetFromPath(o.NetNS)
	if err != nil {
		w.Fatal(err)
	}
	defer ns.Close()
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}
	if err := netlink.LinkAdd(link); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = netlink.LinkDel(link) })
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		w.Fatal(err)
	}
	defer h.Close()
	set := func(h *netlink.Handle, name, host string) {
		l, err := h.LinkByName(name)
		if err != nil {
			w.Fatal(err)
		}
		for _, a := range []string{"192.0.2." + host + "/24", "2001:db8::" + host + "/64"} {
			addr, _ := netlink.ParseAddr(a)
			addr.Flags = unix.IFA_F_NODAD
			if err := h.AddrAdd(l, addr); err != nil {
				w.Fatal(err)
			}
		}
		if err := h.LinkSetUp(l); err != nil {
			w.Fatal(err)
		}
	}
	set(&netlink.Handle{}, "uplink", "1")
	set(h, "eth0", "2")
	return o
}

// inside runs f with a thread in the pod's namespace; sockets that f makes
// stay there. A pod without a namespace is the host.
func (w *world) inside(p Pod, f func() error) error {
	if p.NetNS == "" {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if unix.Gettid() == os.Getpid() {
			// But not the first, which would stay in the namespace.
			done <- w.inside(p, f)
			runtime.UnlockOSThread()
			return
		}
		fd, err := unix.Open(p.NetNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(fd)
			err = unix.Setns(fd, unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// serve answers, in the pod, each TCP connection and UDP packet to port with
// the address it came from.
func (w *world) serve(p Pod, port int) {
	w.Helper()
	err := w.inside(p, func() error {
		// A connection whose link went before its close was acknowledged keeps the
		// namespace, by default for minutes.
		for _, name := range []string{"tcp_orphan_retries", "tcp_fin_timeout"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte("1"), 0); err != nil {
				return err
			}
		}
		lc := net.ListenConfig{}
		tcp, err := lc.Listen(w.ctx, "tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		udp, err := lc.ListenPacket(w.ctx, "udp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		w.Cleanup(func() { _ = tcp.Close(); _ = udp.Close() })
		go func() {
			for {
				c, err := tcp.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, c.RemoteAddr().String())
				_ = c.Close()
			}
		}()
		go func() {
			for buf := make([]byte, 64); ; {
				_, from, err := udp.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = udp.WriteTo([]byte(from.String()), from)
			}
		}()
		return nil
	})
	if err != nil {
		w.Fatal(err)
	}
}

// ask calls address from the pod and returns the address the server saw.
func (w *world) ask(p Pod, network, address string) (from netip.Addr, err error) {
	err = w.inside(p, func() error {
		c, err := net.DialTimeout(network, address, 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if network == "udp" {
			if _, err := c.Write([]byte("hello")); err != nil {
				return err
			}
		}
		buf := make([]byte, 128)
		n, err := c.Read(buf)
		if err != nil && !(errors.Is(err, io.EOF) && n > 0) {
			return err
		}
		ap, err := netip.ParseAddrPort(string(bytes.TrimSpace(buf[:n])))
		from = ap.Addr().Unmap()
		return err
	})
	return from, err
}

var host = Pod{Name: "host"}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
