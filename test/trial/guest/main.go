// Command guest is all there is in the machine of the trial of power cuts: its
// first process. It runs davitd on the machine's disk and has it pull and
// remove images. What it did, and what it was answered, it writes to the disk
// behind the file system, so that it stands in order among davitd's own writes.
//
// Its settings are variables on the kernel's command line.
package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

func main() {
	if err := run(); err != nil {
		fmt.Println("guest:", err)
	} else {
		fmt.Println("guest: done")
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	if err := arrange(); err != nil {
		return err
	}
	davitd := exec.Command("/bin/davitd", "--config", "/davitd.toml", "--root", "/disk/root", "--state", "/run/davit")
	davitd.Env = []string{"PATH=/bin"}
	davitd.Stdout, davitd.Stderr = os.Stdout, os.Stderr
	if err := davitd.Start(); err != nil {
		return err
	}
	c, err := testkit.Dial("unix:///run/davit/davit.sock")
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	for {
		if _, err := c.ListImages(ctx, &runtimeapi.ListImagesRequest{}); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	m, err := openMarks()
	if err != nil {
		return err
	}
	return work(ctx, c, m)
}

// arrange makes a system of what the kernel unpacked.
func arrange() error {
	for _, m := range []struct{ source, at, kind, options string }{
		{"dev", "/dev", "devtmpfs", ""}, {"proc", "/proc", "proc", ""}, {"sys", "/sys", "sysfs", ""},
		{"run", "/run", "tmpfs", "mode=0755"}, {"tmp", "/tmp", "tmpfs", ""}, {"cgroup", "/sys/fs/cgroup", "cgroup2", ""},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.at, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	modules, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	slices.Sort(modules) // their names begin with the order
	for _, file := range modules {
		if err := load(file); err != nil {
			return fmt.Errorf("load %s: %w", file, err)
		}
	}
	if err := connect(); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if err := os.MkdirAll("/disk", 0o755); err != nil {
		return err
	}
	for range 100 {
		if err = unix.Mount("/dev/vda", "/disk", "ext4", 0, ""); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("mount the disk: %w", err)
}

func load(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// connect gives the machine the address that QEMU's user network expects.
func connect() error {
	for _, name := range []string{"lo", "eth0"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		if name == "lo" {
			continue
		}
		address := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 0, 2, 15), Mask: net.CIDRMask(24, 32)}}
		if err := netlink.AddrAdd(link, address); err != nil {
			return err
		}
	}
	return nil
}

// marks are blocks on the disk behind the file system, one for each event.
type marks struct {
	disk   *os.File
	at     int64
	buffer []byte // aligned, as O_DIRECT needs it
}

const block = 4096

func openMarks() (*marks, error) {
	at, err := strconv.ParseInt(os.Getenv("TRIAL_MARKS"), 10, 64)
	if err != nil {
		return nil, err
	}
	// Not O_SYNC: that would have the disk write out what davitd has left in its cache.
	disk, err := os.OpenFile("/dev/vda", os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	buffer := make([]byte, 2*block)
	skip := block - int(uintptr(unsafe.Pointer(&buffer[0]))%block)
	return &marks{disk, at, buffer[skip : skip+block]}, nil
}

func (m *marks) write(event, tag string) error {
	clear(m.buffer)
	copy(m.buffer, event+" "+tag)
	_, err := m.disk.WriteAt(m.buffer, m.at)
	m.at += block
	fmt.Println("guest:", event, tag)
	return err
}

// work pulls and removes images until enough were pulled: those that are not
// there all at once or one after the other, and then some are removed.
func work(ctx context.Context, c *testkit.Client, m *marks) error {
	pulls, err := strconv.Atoi(os.Getenv("TRIAL_PULLS"))
	if err != nil {
		return err
	}
	seed, err := strconv.ParseUint(os.Getenv("TRIAL_SEED"), 10, 64)
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(seed, 2))
	refs := strings.Split(os.Getenv("TRIAL_REFS"), ",")
	present := map[string]bool{}
	for pulls > 0 {
		var group errgroup.Group
		group.SetLimit(1 + random.IntN(len(refs)))
		var answered []string
		for _, ref := range refs {
			if present[ref] {
				continue
			}
			pulls--
			present[ref] = true
			answered = append(answered, ref)
			if err := m.write("pulling", ref); err != nil {
				return err
			}
			group.Go(func() error {
				_, err := c.Pull(ctx, ref)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		for _, ref := range answered {
			if err := m.write("pulled", ref); err != nil {
				return err
			}
		}
		for _, ref := range refs {
			if random.IntN(3) == 0 {
				continue
			}
			present[ref] = false
			if err := m.write("removing", ref); err != nil {
				return err
			}
			if _, err := c.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
				return err
			}
		}
	}
	return nil
}
