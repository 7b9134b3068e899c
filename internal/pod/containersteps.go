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
	"strconv"
	"strings"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/idmap"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/label"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/ocispec"
	"github.com/davit-runtime/davit/internal/span"
	"github.com/davit-runtime/davit/internal/store"
	"github.com/davit-runtime/davit/internal/volume"
)

// A recipe is what is known of a container only while it is made.
type recipe struct {
	image   imagespec.ImageConfig
	rootfs  string
	labels  label.Labels
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
	pod := p.podStateOf(c).namespaceUsers()
	for i, m := range c.state.Load().Config.Mounts {
		if !isImage(m) {
			continue
		}
		users, err := usersOf(m, pod)
		if err != nil {
			return volumeFailed(i, m, err)
		}
		if users == nil {
			users = pod
		}
		at, err := p.opt.Rootfs.MountVolume(ctx, image.Volume{
			Container: c.id, Index: i, ImageID: m.Image.ImageRef, SubPath: m.ImageSubPath,
			MountOptions: image.MountOptions{Users: users, Label: c.recipe.labels.Mount},
		})
		if err != nil {
			return volumeFailed(i, m, err)
		}
		c.recipe.volumes[i] = at
	}
	return nil
}

// usersOf returns by whose map a mount's files are to be seen: pod's, if it is
// that, a new user namespace's, or nil for no map.
func usersOf(m *runtimeapi.Mount, pod *idmap.Users) (*idmap.Users, error) {
	ids, err := idmap.FromCRI(m.UidMappings, m.GidMappings)
	switch {
	case err != nil || ids.Empty():
		return nil, err
	case pod != nil && ids.Equal(pod.Map):
		return pod, nil
	}
	return &idmap.Users{Map: ids}, nil
}

func (p *Pods) unmountImages(ctx context.Context, c *container) error {
	return p.opt.Rootfs.UnmountVolumes(ctx, c.id)
}

func (p *Pods) mountRootfs(ctx context.Context, c *container) (err error) {
	s, pod := c.state.Load(), p.podStateOf(c)
	if c.recipe.labels, err = p.opt.Host.Labels.Container(pod.Labels, s.Config.GetLinux().GetSecurityContext()); err != nil {
		return err
	}
	c.recipe.rootfs, err = p.opt.Rootfs.Mount(ctx, c.id, s.ImageID, image.MountOptions{Users: pod.namespaceUsers(), Label: c.recipe.labels.Mount})
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
	s, ps := c.state.Load(), p.podStateOf(c)
	user, err := p.opt.Specs.ResolveUser(c.recipe.rootfs, s.Config.GetLinux().GetSecurityContext(), c.recipe.image.User)
	if err != nil {
		return err
	}
	in, err := p.specInput(c, s, ps)
	if err != nil {
		return err
	}
	in.User = user
	if err := p.relabel(in.Container.Mounts, c.recipe.labels.Mount); err != nil {
		return err
	}
	if err := p.attachTrees(c, &in, ps.namespaceUsers()); err != nil {
		return err
	}
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
	if err := p.finishSpec(spec, c.state.Load().Handler, c.recipe.labels); err != nil {
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

// relabel gives the sources of mounts the container's label, where asked for.
func (p *Pods) relabel(mounts []*runtimeapi.Mount, mountLabel string) error {
	for _, m := range mounts {
		if !m.SelinuxRelabel || p.opt.Host.Labels == nil {
			continue
		}
		source, err := ocispec.CheckMount(m)
		if err == nil {
			err = p.opt.Host.Labels.Relabel(source, mountLabel)
		}
		if err != nil {
			return fmt.Errorf("mount at %s: %w", m.ContainerPath, err)
		}
	}
	return nil
}

// attachTrees makes what the sources of in's mounts are to be and OCI runtimes
// cannot make of them, or not all can: read-only with all below, shown by a
// user namespace's map, within reach of its root.
func (p *Pods) attachTrees(c *container, in *ocispec.Input, users *idmap.Users) error {
	images := slices.Collect(maps.Values(c.recipe.volumes)) // they are so already
	if users != nil && in.Namespaces.Net == "" {
		in.Files.Sys = filepath.Join(p.trees(c.id), "sys")
		if err := p.opt.mounts.attach(idmap.Tree{Source: "/sys", ReadOnly: true}, in.Files.Sys); err != nil {
			return err
		}
	}
	for i, m := range in.Container.Mounts {
		t := idmap.Tree{ReadOnly: m.RecursiveReadOnly, Slave: m.Propagation != runtimeapi.MountPropagation_PROPAGATION_PRIVATE}
		var err error
		if t.Users, err = usersOf(m, users); err != nil {
			return fmt.Errorf("mount at %s: %w", m.ContainerPath, err)
		}
		if users == nil && t.Users == nil && !t.ReadOnly || slices.Contains(images, m.HostPath) {
			continue
		}
		if t.Source, err = ocispec.CheckMount(m); err != nil {
			return err
		}
		at := filepath.Join(p.trees(c.id), strconv.Itoa(i))
		if err := p.opt.mounts.attach(t, at); err != nil {
			return fmt.Errorf("mount at %s: %w", m.ContainerPath, err)
		}
		m.HostPath, m.UidMappings, m.GidMappings, m.RecursiveReadOnly = at, nil, nil, false
	}
	return nil
}

// trees is the directory of trees that are attached while a container is
// made. It is never deleted with what is in it: that would be the sources.
func (p *Pods) trees(id string) string { return filepath.Join(p.opt.State, "trees", id) }

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
		m.UidMappings, m.GidMappings, m.RecursiveReadOnly, m.SelinuxRelabel = nil, nil, false, false // it is all that
	}
	// The kubelet's mounts come last: they may lie within a volume of the image.
	config.Mounts = append(c.recipe.mounts, config.Mounts...)
	in := ocispec.Input{
		ID: c.id, Pod: pod.Config, Container: config, Image: c.recipe.image, Rootfs: c.recipe.rootfs,
		CgroupsPath: s.Place.Path, CgroupV2: p.opt.Host.CgroupV2,
		Namespaces: ocispec.Namespaces{
			User: pod.Paths["user"], Net: pod.Paths["net"], IPC: pod.Paths["ipc"], UTS: pod.Paths["uts"], Users: pod.users(),
		},
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
// own start, adds what spares compiling the seccomp profile, and the labels.
func (p *Pods) finishSpec(spec *specs.Spec, handler string, l label.Labels) error {
	if l.Process != "" && spec.Process != nil {
		spec.Process.SelinuxLabel = l.Process
	}
	if spec.Linux == nil {
		return nil
	}
	spec.Linux.MountLabel = l.Mount
	if r := spec.Linux.Resources; r != nil && r.CPU != nil {
		r.CPU.Quota, r.CPU.Period, r.CPU.Shares = nil, nil, nil
	}
	r, err := p.opt.Runtimes.Runtime(handler)
	if err != nil {
		return err
	}
	add := map[string]string{}
	if r.SystemdCgroup {
		// Else limits would be on the scope, and those of the create below it, in
		// a cgroup "container", where a later limit that is higher has no effect.
		add[noSubgroup] = ""
	}
	if spec.Linux.Seccomp != nil {
		maps.Copy(add, p.opt.Runtimes.Seccomp(r, spec.Linux.Seccomp))
	}
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	maps.Copy(spec.Annotations, add)
	return nil
}

// noSubgroup, if empty, keeps crun from making a cgroup below a systemd scope.
// crun: crun.1, run.oci.systemd.subgroup.
const noSubgroup = "run.oci.systemd.subgroup"

func (p *Pods) removeBundle(_ context.Context, c *container) error {
	if err := p.opt.mounts.detach(p.trees(c.id)); err != nil {
		return err
	}
	return os.RemoveAll(p.bundle(c.id))
}

func (p *Pods) createProcess(ctx context.Context, c *container) error {
	s := c.state.Load()
	r, err := p.opt.Runtimes.Runtime(s.Handler)
	if err != nil {
		return err
	}
	uid, gid := p.podStateOf(c).users().Host(s.User.UID, s.User.GID)
	end := span.Command(ctx, "process: create", r.Path+" create")
	pid, err := p.opt.Processes.Create(ctx, monitor.Container{
		ID: c.id, Runtime: r, Bundle: p.bundle(c.id), LogPath: s.LogPath, UID: uid, GID: gid,
		TTY: s.Config.GetTty(), Stdin: s.Config.GetStdin(), StdinOnce: s.Config.GetStdinOnce(),
		OOMEvents: s.Place.OOMEvents,
	})
	end(err, nil)
	if err != nil { // not every OCI runtime names the program it could not run
		return fmt.Errorf("run %q: %w", c.recipe.program, err)
	}
	// The container has its own by now; these would keep volumes from being unmounted.
	if err := p.opt.mounts.detach(p.trees(c.id)); err != nil {
		return err
	}
	return c.amend(func(s *containerState) { s.Pid = pid })
}

// podStateOf returns the state of a container's pod, which must be there.
func (p *Pods) podStateOf(c *container) *podState {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.pods[c.podID].state.Load()
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
