package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/ocispec"
	"github.com/davit-runtime/davit/internal/store"
	"github.com/davit-runtime/davit/internal/volume"
)

// A recipe is what is known of a container only while it is made.
type recipe struct {
	image   imagespec.ImageConfig
	rootfs  string
	volumes map[int]string      // where the images are that are mounts, by their place in the config
	mounts  []*runtimeapi.Mount // of the image's volumes
	program string              // that the spec runs
}

// stepsOfContainers returns what a container holds, in the order acquired. The
// names are in records: to change one is to change the records' format.
func (p *Pods) stepsOfContainers() []step[*container] {
	return []step[*container]{
		{"rootfs", nil, p.mountRootfs, p.unmountRootfs},
		{"imagevolumes", wantsImages, p.mountImages, p.unmountImages},
		{"volumes", func(c *container) bool { return len(c.recipe.image.Volumes) > 0 }, p.makeVolumes, p.removeVolumes},
		{"spec", nil, p.writeSpec, p.removeBundle},
		{"process", nil, p.createProcess, p.removeProcess},
	}
}

// findImage looks the image up, and those that are volumes, before anything is
// acquired.
func (p *Pods) findImage(c *container) error {
	ref := c.state.Load().Config.GetImage().GetImage()
	id, config, err := p.opt.Rootfs.Config(ref)
	if err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	name, err := stopSignal(c.state.Load().Config.GetStopSignal(), config.StopSignal)
	if err != nil {
		return err
	}
	found, encoded, err := p.findVolumes(c.state.Load())
	if err != nil {
		return err
	}
	c.recipe = &recipe{image: config, volumes: map[int]string{}}
	return c.amend(func(s *containerState) {
		s.ImageID, s.StopSignal, s.Config, s.config = id, name, found, encoded
	})
}

// findVolumes returns the container's config, also encoded, in which the images
// that are volumes have the IDs they are found by.
//
// CRI: api.proto, ImageSpec.image_ref.
func (p *Pods) findVolumes(s *containerState) (*runtimeapi.ContainerConfig, json.RawMessage, error) {
	if !slices.ContainsFunc(s.Config.GetMounts(), isImage) {
		return s.Config, s.config, nil
	}
	config := proto.CloneOf(s.Config)
	for i, m := range config.Mounts {
		if !isImage(m) {
			continue
		}
		id, _, err := p.opt.Rootfs.Config(m.Image.Image)
		if err != nil {
			return nil, nil, volumeFailed(i, m, err)
		}
		m.Image.ImageRef = id
	}
	encoded, err := protojson.Marshal(config)
	return config, encoded, err
}

func isImage(m *runtimeapi.Mount) bool { return m.GetImage() != nil }

// volumeFailed says which mount failed, in the words that the kubelet looks for.
func volumeFailed(i int, m *runtimeapi.Mount, err error) error {
	return fmt.Errorf("ImageVolumeMountFailed: config.mounts[%d] at %s: image %s: %w", i, m.ContainerPath, m.Image.Image, err)
}

func wantsImages(c *container) bool {
	return slices.ContainsFunc(c.state.Load().Config.GetMounts(), isImage)
}

func (p *Pods) mountImages(ctx context.Context, c *container) error {
	for i, m := range c.state.Load().Config.Mounts {
		if !isImage(m) {
			continue
		}
		at, err := p.opt.Rootfs.MountVolume(ctx, image.Volume{
			Container: c.id, Index: i, ImageID: m.Image.ImageRef, SubPath: m.ImageSubPath,
		})
		if err != nil {
			return volumeFailed(i, m, err)
		}
		c.recipe.volumes[i] = at
	}
	return nil
}

func (p *Pods) unmountImages(ctx context.Context, c *container) error {
	return p.opt.Rootfs.UnmountVolumes(ctx, c.id)
}

func (p *Pods) mountRootfs(ctx context.Context, c *container) (err error) {
	c.recipe.rootfs, err = p.opt.Rootfs.Mount(ctx, c.id, c.state.Load().ImageID)
	return err
}

func (p *Pods) unmountRootfs(ctx context.Context, c *container) error {
	return p.opt.Rootfs.Unmount(ctx, c.id)
}

func (p *Pods) makeVolumes(_ context.Context, c *container) (err error) {
	c.recipe.mounts, err = volume.Make(c.recipe.image.Volumes, c.state.Load().Config.GetMounts(), c.recipe.rootfs, p.volumes(c.id))
	return err
}

func (p *Pods) removeVolumes(_ context.Context, c *container) error {
	return os.RemoveAll(p.volumes(c.id))
}

func (p *Pods) volumes(id string) string { return filepath.Join(p.containerRoot(id), "volumes") }

// writeSpec finds out who the container runs as and writes its bundle.
func (p *Pods) writeSpec(ctx context.Context, c *container) error {
	p.mu.RLock()
	pod := p.pods[c.podID]
	p.mu.RUnlock()
	s, ps := c.state.Load(), pod.state.Load()
	user, err := p.opt.Specs.ResolveUser(c.recipe.rootfs, s.Config.GetLinux().GetSecurityContext(), c.recipe.image.User)
	if err != nil {
		return err
	}
	in, err := p.specInput(c, s, ps)
	if err != nil {
		return err
	}
	in.User = user
	spec, err := p.opt.Specs.Build(in)
	if err != nil {
		return err
	}
	if p.opt.Specs.Devices != nil {
		if err := p.opt.Specs.Devices(spec, s.Config); err != nil {
			return err
		}
	}
	if err := makeRoomForLog(s.LogPath); err != nil {
		return err
	}
	if err := p.tellCreate(ctx, c, spec, func() error { return p.writeBundle(c, spec) }); err != nil {
		return err
	}
	return c.amend(func(s *containerState) { s.User = user })
}

// writeBundle writes what the OCI runtime is to make of spec, which it finishes.
func (p *Pods) writeBundle(c *container, spec *specs.Spec) error {
	if err := p.finishSpec(spec, c.state.Load().Handler); err != nil {
		return err
	}
	c.recipe.program = program(spec)
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.bundle(c.id), 0o700); err != nil {
		return err
	}
	return store.WriteFile(filepath.Join(p.bundle(c.id), "config.json"), data, 0o600)
}

// makeRoomForLog makes a log's directory. Precondition if something stands
// in the way of the directory or the log.
func makeRoomForLog(path string) error {
	if path == "" {
		return nil
	}
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		if info, statErr := os.Stat(path); statErr == nil && !info.Mode().IsRegular() {
			err = &fs.PathError{Op: "open", Path: path, Err: errors.New("it is there and not a file")}
		}
	}
	if err != nil && !fault.Is(err, fault.Exhausted) {
		return fault.New(fault.Precondition, "", "container's log: %w", err)
	}
	return err
}

func (p *Pods) specInput(c *container, s *containerState, pod *podState) (ocispec.Input, error) {
	dir := p.podDir(pod.ID)
	config := proto.CloneOf(s.Config)
	for i, at := range c.recipe.volumes {
		m := config.Mounts[i]
		m.HostPath, m.Image, m.ImageSubPath = at, nil, ""
	}
	// The kubelet's mounts come last: they may lie within a volume of the image.
	config.Mounts = append(c.recipe.mounts, config.Mounts...)
	in := ocispec.Input{
		ID: c.id, Pod: pod.Config, Container: config, Image: c.recipe.image, Rootfs: c.recipe.rootfs,
		CgroupsPath: s.Place.Path, CgroupV2: p.opt.Host.CgroupV2,
		Namespaces:     ocispec.Namespaces{Net: pod.Paths["net"], IPC: pod.Paths["ipc"], UTS: pod.Paths["uts"]},
		Files:          ocispec.Files{ResolvConf: filepath.Join(dir, "resolv.conf"), Hostname: filepath.Join(dir, "hostname"), Shm: "/dev/shm"},
		Capabilities:   p.opt.Host.Capabilities,
		MinOOMScoreAdj: p.opt.Host.MinOOMScoreAdj,
	}
	if pod.namespaceOption().GetIpc() != runtimeapi.NamespaceMode_NODE {
		in.Files.Shm = p.shm(pod.ID)
	}
	if config.GetLinux().GetSecurityContext().GetPrivileged() && p.opt.Host.Devices != nil {
		in.Devices = p.opt.Host.Devices()
	}
	var err error
	in.Namespaces.PID, err = p.pidNamespace(config, pod)
	return in, err
}

// pidNamespace returns the PID namespace to join, or empty. Where the
// container leaves it to the pod and that has the host's, config is made to say so.
func (p *Pods) pidNamespace(config *runtimeapi.ContainerConfig, pod *podState) (string, error) {
	o := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	switch o.GetPid() {
	case runtimeapi.NamespaceMode_TARGET:
		target, err := p.findContainer(o.GetTargetId())
		if err != nil {
			return "", err
		}
		s := target.state.Load()
		if s.PodID != pod.ID {
			return "", fault.New(fault.Invalid, "", "target container %s is in another pod", s.ID)
		}
		if s.State != Running && s.State != Created {
			return "", fault.New(fault.Precondition, "", "target container %s is %s", s.ID, s.State)
		}
		return fmt.Sprintf("/proc/%d/ns/pid", s.Pid), nil
	case runtimeapi.NamespaceMode_POD:
		if pod.namespaceOption().GetPid() == runtimeapi.NamespaceMode_NODE {
			onHostPID(config)
			return "", nil
		}
		return pod.Paths["pid"], nil
	}
	return "", nil
}

// onHostPID sets the container's PID namespace to the host's.
func onHostPID(config *runtimeapi.ContainerConfig) {
	if config.Linux == nil {
		config.Linux = &runtimeapi.LinuxContainerConfig{}
	}
	if config.Linux.SecurityContext == nil {
		config.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{}
	}
	sc := config.Linux.SecurityContext
	if sc.NamespaceOptions == nil {
		sc.NamespaceOptions = &runtimeapi.NamespaceOption{}
	}
	sc.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
}

// finishSpec leaves out the CPU quota and shares, which would slow the OCI runtime's
// own start, and adds what spares compiling the seccomp profile.
func (p *Pods) finishSpec(spec *specs.Spec, handler string) error {
	if spec.Linux == nil {
		return nil
	}
	if r := spec.Linux.Resources; r != nil && r.CPU != nil {
		r.CPU.Quota, r.CPU.Period, r.CPU.Shares = nil, nil, nil
	}
	if spec.Linux.Seccomp == nil {
		return nil
	}
	r, err := p.opt.Runtimes.Runtime(handler)
	if err != nil {
		return err
	}
	if add := p.opt.Runtimes.Seccomp(r, spec.Linux.Seccomp); len(add) > 0 {
		if spec.Annotations == nil {
			spec.Annotations = map[string]string{}
		}
		maps.Copy(spec.Annotations, add)
	}
	return nil
}

func (p *Pods) removeBundle(_ context.Context, c *container) error {
	return os.RemoveAll(p.bundle(c.id))
}

func (p *Pods) createProcess(ctx context.Context, c *container) error {
	s := c.state.Load()
	r, err := p.opt.Runtimes.Runtime(s.Handler)
	if err != nil {
		return err
	}
	pid, err := p.opt.Processes.Create(ctx, monitor.Container{
		ID: c.id, Runtime: r, Bundle: p.bundle(c.id), LogPath: s.LogPath,
		TTY: s.Config.GetTty(), Stdin: s.Config.GetStdin(), StdinOnce: s.Config.GetStdinOnce(),
		OOMEvents: s.Place.OOMEvents,
	})
	if err != nil { // not every OCI runtime names the program it could not run
		return fmt.Errorf("run %q: %w", c.recipe.program, err)
	}
	return c.amend(func(s *containerState) { s.Pid = pid })
}

func program(spec *specs.Spec) string {
	if spec.Process == nil || len(spec.Process.Args) == 0 {
		return ""
	}
	return spec.Process.Args[0]
}

func (p *Pods) removeProcess(ctx context.Context, c *container) error {
	if err := p.opt.Processes.Remove(ctx, c.id); err != nil {
		return err
	}
	return p.opt.Cgroups.Remove(ctx, c.state.Load().Place)
}

// stopSignal returns the name of the signal that asks a container to end:
// asked for, else the image's, else SIGTERM. Invalid for an unknown one.
func stopSignal(asked runtimeapi.Signal, image string) (string, error) {
	if asked != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		image = strings.TrimPrefix(asked.String(), "SIGNAL_")
	}
	if image == "" {
		return "SIGTERM", nil
	}
	name, _, err := parseSignal(image)
	return name, err
}
