package trial

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/testkit"
)

// modules are the drivers that the machine needs, beside those they need.
var modules = []string{"virtio_pci", "virtio_blk", "virtio_net", "crc32c_generic", "ext4", "overlay", "loop", "erofs"}

// A machine is a virtual one: a kernel, davitd, program guest, and one disk.
type machine struct {
	kernel    string // a directory with boot/vmlinuz-* and lib/modules/*, as kernel.sh makes it
	dir       string
	blockdevs []string          // QEMU's options for its disk
	variables map[string]string // on the kernel's command line
}

// run starts the machine and waits until it turns itself off. The machine
// reaches this one's loopback at 10.0.2.2.
func (m *machine) run(ctx context.Context, t *testing.T) error {
	vmlinuz, err := filepath.Glob(filepath.Join(m.kernel, "boot/vmlinuz-*"))
	if err != nil || len(vmlinuz) != 1 {
		return fmt.Errorf("%d kernels in %s, want 1", len(vmlinuz), m.kernel)
	}
	line := "console=ttyS0 quiet panic=-1 net.ifnames=0 mitigations=off random.trust_cpu=on tsc=reliable no_timer_check"
	for name, value := range m.variables {
		line += fmt.Sprintf(" %s=%s", name, value)
	}
	accel := os.Getenv("DAVIT_TRIAL_ACCEL")
	if accel == "" {
		accel = "tcg,thread=multi" // everywhere; kvm is ten times as fast where it works
	}
	args := []string{
		"-accel", accel, "-cpu", "max", "-smp", "2", "-m", "1024", "-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio",
		"-kernel", vmlinuz[0], "-initrd", filepath.Join(m.dir, "initrd.gz"), "-append", line,
		"-device", "virtio-blk-pci,drive=disk,write-cache=on",
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net", "-device", "virtio-rng-pci",
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", slices.Concat(args, m.blockdevs)...)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return err
	}
	done := false
	var last []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		done = done || line == "guest: done"
		if strings.HasPrefix(line, "load:") {
			t.Log(line)
		}
		if last = slices.Concat(last, []string{line}); len(last) > 30 {
			last = last[1:]
		}
	}
	if err := cmd.Wait(); err != nil || !done {
		return fmt.Errorf("the machine failed: %w, %s\n%s", err, said.String(), strings.Join(last, "\n"))
	}
	return nil
}

// makeInitrd packs all that the machine runs.
func (m *machine) makeInitrd(config string) error {
	bin, err := testkit.Binaries()
	if err != nil {
		return err
	}
	guest := filepath.Join(m.dir, "guest")
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", guest, "./guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build guest: %w\n%s", err, out)
	}
	f, err := os.Create(filepath.Join(m.dir, "initrd.gz"))
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return err
	}
	w := &cpio{Writer: z}
	w.dir("bin")
	w.dir("modules")
	w.file("davitd.toml", []byte(config))
	w.copy("init", guest)
	w.copy("bin/davitd", filepath.Join(bin, "davitd"))
	w.copy("bin/davit-monitor", filepath.Join(bin, "davit-monitor"))
	files, err := m.modules()
	if err != nil {
		return err
	}
	for i, file := range files {
		w.copy(fmt.Sprintf("modules/%02d-%s", i, filepath.Base(file)), file)
	}
	w.entry("TRAILER!!!", 0, nil)
	return errors.Join(w.err, z.Close())
}

// modules lists the files of modules in the order in which they load.
func (m *machine) modules() ([]string, error) {
	lists, err := filepath.Glob(filepath.Join(m.kernel, "lib/modules/*/modules.dep"))
	if err != nil || len(lists) != 1 {
		return nil, fmt.Errorf("%d lists of modules in %s, want 1", len(lists), m.kernel)
	}
	text, err := os.ReadFile(lists[0])
	if err != nil {
		return nil, err
	}
	needs := map[string][]string{} // by file
	files := map[string]string{}   // by module
	for line := range strings.Lines(string(text)) {
		file, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		needs[file] = strings.Fields(rest)
		files[strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")] = file
	}
	var ordered []string
	var add func(file string)
	add = func(file string) {
		for _, needed := range needs[file] {
			add(needed)
		}
		if path := filepath.Join(filepath.Dir(lists[0]), file); !slices.Contains(ordered, path) {
			ordered = append(ordered, path)
		}
	}
	for _, name := range modules {
		if files[name] != "" { // else the kernel has it built in
			add(files[name])
		}
	}
	return ordered, nil
}

// A cpio writes an archive as the kernel unpacks it at boot.
//
// kernel: Documentation/driver-api/early-userspace/buffer-format.rst
type cpio struct {
	io.Writer
	n   int
	err error
}

func (c *cpio) entry(name string, mode int, data []byte) {
	if c.err != nil {
		return
	}
	c.n++
	var b bytes.Buffer
	fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", c.n, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
	b.Write(data)
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
	_, c.err = c.Write(b.Bytes())
}

func (c *cpio) dir(name string)               { c.entry(name, unix.S_IFDIR|0o755, nil) }
func (c *cpio) file(name string, data []byte) { c.entry(name, unix.S_IFREG|0o755, data) }

func (c *cpio) copy(name, from string) {
	data, err := os.ReadFile(from)
	c.err = errors.Join(c.err, err)
	c.file(name, data)
}
