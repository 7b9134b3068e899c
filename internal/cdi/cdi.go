// Package cdi puts devices of the Container Device Interface into OCI specs.
//
// It owns nothing: the spec files in its directories are their vendors'. They
// are read anew for each container that asks for devices, so that a file
// dropped in counts for the next one, and so that nothing a container is given
// is shared with another. A file that cannot be used takes away what it
// describes and nothing else. Package pod calls it.
package cdi

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	lib "tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/davit-runtime/davit/internal/fault"
)

// Default are the directories that vendors use, the less specific first.
func Default() []string { return []string{lib.DefaultStaticDir, lib.DefaultDynamicDir} }

// maxFile bounds a spec file: parsing takes many times its size.
const maxFile = 4 << 20

// Devices finds devices. Its methods may be called at the same time.
type Devices struct {
	dirs []string
	log  *slog.Logger

	mu     sync.Mutex
	warned map[string]string // by file: what was last said of it
}

// New returns what is described in dirs. A device in a later directory hides
// one of the same name in an earlier one; they need not exist.
func New(dirs []string, log *slog.Logger) *Devices {
	return &Devices{dirs: dirs, log: log, warned: map[string]string{}}
}

// Requested returns the names of the devices that c asks for by field or by
// annotation, each once.
func Requested(c *runtimeapi.ContainerConfig) []string {
	var names []string
	for _, d := range c.GetCDIDevices() {
		names = append(names, d.GetName())
	}
	var byAnnotation []string
	for key, value := range c.GetAnnotations() {
		if strings.HasPrefix(key, lib.AnnotationPrefix) {
			byAnnotation = append(byAnnotation, strings.Split(value, ",")...)
		}
	}
	slices.Sort(byAnnotation) // the order of a map is none
	var once []string
	for _, name := range append(names, byAnnotation...) {
		if !slices.Contains(once, name) {
			once = append(once, name)
		}
	}
	return once
}

// InjectRequested changes spec for the devices that c asks for, if any, as Inject does.
func (d *Devices) InjectRequested(spec *specs.Spec, c *runtimeapi.ContainerConfig) error {
	return d.Inject(spec, Requested(c))
}

// Inject changes spec for the named devices: environment, device nodes with
// their control group rules, mounts, hooks, groups.
//
// It returns Precondition, naming the device, if no file describes it or what
// it needs of the host is missing, and Unimplemented for what no OCI runtime
// here can do. The spec may have been changed by then.
func (d *Devices) Inject(spec *specs.Spec, names []string) error {
	if len(names) == 0 {
		return nil
	}
	all := d.scan()
	edits := &lib.ContainerEdits{}
	used := map[*lib.Spec]bool{}
	for _, name := range names {
		device := all.devices[name]
		if device == nil {
			return all.missing(name, d.dirs)
		}
		of := device.GetSpec()
		if !used[of] {
			used[of] = true
			edits.Append(&lib.ContainerEdits{ContainerEdits: &of.ContainerEdits})
		}
		edits.Append(&lib.ContainerEdits{ContainerEdits: &device.ContainerEdits})
	}
	what := strings.Join(names, ", ")
	if edits.ContainerEdits != nil && len(edits.NetDevices) > 0 {
		return fault.New(fault.Unimplemented, "", "CDI %s: network interfaces of the host cannot be given to containers", what)
	}
	if err := guarded(func() error { return edits.Apply(spec) }); err != nil {
		return fault.New(fault.Precondition, "", "CDI %s: %w", what, err)
	}
	return nil
}

// A scan is what the directories hold at one moment.
type scan struct {
	devices map[string]*lib.Device
	twice   map[string][]string // by device: the files of one directory that describe it
	broken  []string            // what is wrong with files and directories
}

func (d *Devices) scan() *scan {
	all := &scan{devices: map[string]*lib.Device{}, twice: map[string][]string{}}
	for priority, dir := range d.dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.complain(all, dir, err)
		}
		here := map[string]*lib.Device{}
		for _, entry := range entries {
			path := filepath.Join(dir, entry.Name())
			if ext := filepath.Ext(path); entry.IsDir() || ext != ".json" && ext != ".yaml" {
				continue
			}
			spec, err := read(path, priority)
			if err != nil {
				d.complain(all, path, err)
				continue
			}
			d.praise(path)
			for i := range spec.Devices {
				device := spec.GetDevice(spec.Devices[i].Name)
				name := device.GetQualifiedName()
				if other := here[name]; other != nil {
					all.twice[name] = append(all.twice[name], other.GetSpec().GetPath(), path)
				}
				here[name] = device
			}
		}
		for name, device := range here {
			all.devices[name] = device
		}
	}
	for name := range all.twice {
		// A later directory may have settled it.
		if slices.Contains(all.twice[name], all.devices[name].GetSpec().GetPath()) {
			delete(all.devices, name)
		}
	}
	return all
}

// read reads one spec file, whatever it holds.
func read(path string, priority int) (spec *lib.Spec, err error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular(): // a pipe would keep the reader waiting
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("it is no file: %s", info.Mode().Type())}
	case info.Size() > maxFile:
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("it has %d bytes, at most %d are read", info.Size(), maxFile)}
	}
	err = guarded(func() error {
		spec, err = lib.ReadSpec(path, priority)
		return err
	})
	return spec, err
}

// guarded turns a panic of the library, which does not expect empty list
// entries in a spec file, into an error.
func guarded(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it cannot be understood: %v", p)
		}
	}()
	return f()
}

// complain notes what is wrong with a file, and logs it once.
func (d *Devices) complain(all *scan, path string, err error) {
	text := err.Error()
	if !strings.Contains(text, path) {
		text = path + ": " + text
	}
	all.broken = append(all.broken, text)
	d.mu.Lock()
	said := d.warned[path] == text
	d.warned[path] = text
	d.mu.Unlock()
	if !said {
		d.log.Warn("a CDI spec is left out", "error", text)
	}
}

// praise forgets what was wrong with a file that is right now.
func (d *Devices) praise(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.warned, path)
}

// missing says why a device cannot be had.
func (s *scan) missing(name string, dirs []string) error {
	if files := s.twice[name]; len(files) > 0 {
		slices.Sort(files)
		return fault.New(fault.Precondition, "", "CDI device %s is described more than once, in %s", name, strings.Join(slices.Compact(files), " and "))
	}
	hint := ""
	if len(s.broken) > 0 {
		hint = "; left out: " + strings.Join(s.broken, "; ")
	}
	return fault.New(fault.Precondition, "", "CDI device %s is not described in any file of %s%s", name, strings.Join(dirs, ", "), hint)
}
