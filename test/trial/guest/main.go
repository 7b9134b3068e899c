// Command guest is all there is in the machine of the trial of power cuts: its
// first process. It runs davitd on the machine's disk and gives it work.
//
// Its settings are variables on the kernel's command line.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
	"github.com/davit-runtime/davit/test/trial/load"
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
	offset, err := strconv.ParseInt(os.Getenv("TRIAL_MARKS"), 10, 64)
	if err != nil {
		return err
	}
	pulls, err := strconv.Atoi(os.Getenv("TRIAL_PULLS"))
	if err != nil {
		return err
	}
	seed, err := strconv.ParseUint(os.Getenv("TRIAL_SEED"), 10, 64)
	if err != nil {
		return err
	}
	refs := strings.Split(os.Getenv("TRIAL_REFS"), ",")
	return load.Run(ctx, c, load.Marks{Device: "/dev/vda", Offset: offset}, refs, pulls, seed)
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
		if err := insert(file); err != nil {
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

func insert(file string) error {
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
