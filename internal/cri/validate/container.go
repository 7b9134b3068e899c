package validate

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"github.com/davit-runtime/davit/internal/fault"
)

// Container checks CreateContainer's config for a container in a pod
// with the given config. What needs the disk, or an image, is checked where
// it is used.
func (c *Check) Container(config *runtimeapi.ContainerConfig, in *runtimeapi.PodSandboxConfig, node *Node) {
	if config == nil {
		c.Bad("config", "is missing")
		return
	}
	if config.GetMetadata() == nil {
		c.Bad("config.metadata", "is missing")
	}
	c.Name("config.metadata.name", config.GetMetadata().GetName())
	c.Image("config.image", config.GetImage(), node)
	c.Words("config.command", config.GetCommand())
	c.Words("config.args", config.GetArgs())
	if dir := config.GetWorkingDir(); dir != "" {
		c.Absolute("config.working_dir", dir)
	}
	c.envs("config.envs", config.GetEnvs())
	for i, m := range config.GetMounts() {
		c.mount(fmt.Sprintf("config.mounts[%d]", i), m, node)
	}
	c.devices("config.devices", config.GetDevices())
	c.cdiDevices(config)
	if path := config.GetLogPath(); path != "" {
		c.Text("config.log_path", path)
		if !filepath.IsLocal(path) || filepath.Clean(path) == "." {
			c.Bad("config.log_path", "%q is not a path below the pod's log_directory", path)
		}
	}
	c.Enum("config.stop_signal", int32(config.GetStopSignal()), runtimeapi.Signal_name)
	if hasUsers(in.GetLinux().GetSecurityContext().GetNamespaceOptions()) {
		c.noWayOut("config.mounts", config.GetMounts())
	}
	c.Resources("config.linux.resources", config.GetLinux().GetResources())
	c.containerSecurity("config.linux.security_context", config.GetLinux().GetSecurityContext(), in, node.AppArmor)
}

// Image requires a reference, and a runtime handler of this node if there is one.
func (c *Check) Image(field string, i *runtimeapi.ImageSpec, node *Node) {
	if i == nil {
		c.Bad(field, "is missing")
	}
	c.Set(field+".image", i.GetImage())
	c.Text(field+".image", i.GetImage())
	c.Handler(field+".runtime_handler", i.GetRuntimeHandler(), node)
}

// Handler requires a runtime handler of this node; an empty name is the default one.
func (c *Check) Handler(field, name string, node *Node) {
	if name == "" {
		return
	}
	var names []string
	for _, h := range node.Handlers() {
		if h.Name == name {
			return
		}
		names = append(names, h.Name)
	}
	slices.Sort(names)
	c.Bad(field, "%q is not a runtime handler of this node; known: %s", name, strings.Join(names, ", "))
}

// Words requires arguments that a program can be given.
func (c *Check) Words(field string, words []string) {
	for i, w := range words {
		c.Text(fmt.Sprintf("%s[%d]", field, i), w)
	}
}

// cdiDevices requires names as devices of the Container Device Interface have them.
func (c *Check) cdiDevices(config *runtimeapi.ContainerConfig) {
	name := func(field, value string) {
		if !parser.IsQualifiedName(value) {
			c.Bad(field, "%q is not as vendor.com/class=device", value)
		}
	}
	for i, d := range config.GetCDIDevices() {
		name(fmt.Sprintf("config.CDI_devices[%d].name", i), d.GetName())
	}
	for _, key := range slices.Sorted(maps.Keys(config.GetAnnotations())) {
		if strings.HasPrefix(key, "cdi.k8s.io/") {
			for value := range strings.SplitSeq(config.GetAnnotations()[key], ",") {
				name(fmt.Sprintf("config.annotations[%q]", key), value)
			}
		}
	}
}

func (c *Check) envs(field string, envs []*runtimeapi.KeyValue) {
	for i, e := range envs {
		f := fmt.Sprintf("%s[%d]", field, i)
		c.Set(f+".key", e.GetKey())
		c.Text(f+".key", e.GetKey())
		if strings.Contains(e.GetKey(), "=") {
			c.Bad(f+".key", "%q contains an equals sign", e.GetKey())
		}
		if slices.Contains(e.GetValue(), 0) {
			c.Bad(f+".value", "of %q contains a zero byte", e.GetKey())
		}
	}
}

func (c *Check) mount(field string, m *runtimeapi.Mount, node *Node) {
	if m.GetImage() != nil {
		field = "ImageVolumeMountFailed: " + field // the kubelet looks for it
		c.imageMount(field, m, node)
	} else {
		// The kubelet sets image_sub_path here too, for any volume with a subPath
		// in a pod that has an image for a volume, and means nothing by it: it is
		// in host_path already. Kubernetes: pkg/kubelet, makeMounts.
		c.Absolute(field+".host_path", m.GetHostPath())
	}
	c.Absolute(field+".container_path", m.GetContainerPath())
	if path := m.GetContainerPath(); path != "" && filepath.Clean(path) == "/" {
		c.Bad(field+".container_path", "is the root itself")
	}
	propagation := c.Enum(field+".propagation", int32(m.GetPropagation()), runtimeapi.MountPropagation_name)
	if m.GetRecursiveReadOnly() {
		if !m.GetReadonly() {
			c.Bad(field+".recursive_read_only", "is set without readonly")
		}
		if m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
			c.Bad(field+".recursive_read_only", "is set, which %s excludes", propagation)
		}
	}
	c.mapping(field+".uidMappings", m.GetUidMappings())
	c.mapping(field+".gidMappings", m.GetGidMappings())
	if mapped := len(m.GetUidMappings()) > 0; mapped != (len(m.GetGidMappings()) > 0) {
		c.Bad(field+".uidMappings", "and gidMappings must both be set, or neither")
	} else if mapped && m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
		c.Bad(field+".propagation", "is %s, which ID mappings exclude", propagation)
	}
	for i, o := range m.GetMountOptions() {
		if o != "noexec" && o != "nodev" && o != "nosuid" {
			c.Bad(fmt.Sprintf("%s.mount_options[%d]", field, i), "%q is not noexec, nodev or nosuid", o)
		}
	}
}

// noWayOut refuses mounts that are to appear on the host: what a user namespace
// mounts never does. kernel: mount_namespaces(7).
func (c *Check) noWayOut(field string, mounts []*runtimeapi.Mount) {
	for i, m := range mounts {
		if m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
			c.Bad(fmt.Sprintf("%s[%d].propagation", field, i), "is %s, which the pod's user namespace excludes", m.GetPropagation())
		}
	}
}

// imageMount checks a volume that is an image.
func (c *Check) imageMount(field string, m *runtimeapi.Mount, node *Node) {
	c.Image(field+".image", m.GetImage(), node)
	if m.GetHostPath() != "" {
		c.Bad(field+".host_path", "is set beside an image")
	}
	if !m.GetReadonly() {
		c.Bad(field+".readonly", "is false, but image volumes are read-only")
	}
	path := m.GetImageSubPath()
	c.Text(field+".image_sub_path", path)
	if filepath.IsAbs(path) || climbs(path) {
		c.Bad(field+".image_sub_path", "%q is not a path below the image's root", path)
	}
}

func (c *Check) devices(field string, devices []*runtimeapi.Device) {
	for i, d := range devices {
		f := fmt.Sprintf("%s[%d]", field, i)
		c.Absolute(f+".host_path", d.GetHostPath())
		c.Absolute(f+".container_path", d.GetContainerPath())
		if p := d.GetPermissions(); p == "" || strings.Trim(p, "rwm") != "" {
			c.Bad(f+".permissions", "%q is not one or more of r, w and m", p)
		}
	}
}

func (c *Check) containerSecurity(field string, sc *runtimeapi.LinuxContainerSecurityContext, in *runtimeapi.PodSandboxConfig, apparmor bool) {
	of := in.GetLinux().GetSecurityContext()
	if sc.GetPrivileged() && !of.GetPrivileged() {
		c.Bad(field+".privileged", "is set, but the pod is not privileged")
	}
	c.capabilities(field+".capabilities", sc.GetCapabilities())
	ns, podNS := sc.GetNamespaceOptions(), of.GetNamespaceOptions()
	c.namespaces(field+".namespace_options", ns)
	for _, m := range []struct {
		name           string
		mode, podsMode runtimeapi.NamespaceMode
	}{
		{"network", ns.GetNetwork(), podNS.GetNetwork()},
		{"pid", ns.GetPid(), podNS.GetPid()},
		{"ipc", ns.GetIpc(), podNS.GetIpc()},
	} {
		if m.mode == runtimeapi.NamespaceMode_NODE && m.podsMode != runtimeapi.NamespaceMode_NODE {
			c.Bad(field+".namespace_options."+m.name, "is NODE, but the pod's is %s", m.podsMode)
		}
	}
	c.sameUsers(field+".namespace_options.userns_options", ns, podNS)
	c.id(field+".run_as_user", sc.GetRunAsUser())
	c.id(field+".run_as_group", sc.GetRunAsGroup())
	if sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "" {
		c.Bad(field+".run_as_username", "is set beside run_as_user")
	}
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "" {
		c.Bad(field+".run_as_group", "is set without run_as_user or run_as_username")
	}
	if strings.ContainsAny(sc.GetRunAsUsername(), ":\n\x00") {
		c.Bad(field+".run_as_username", "%q is not a user name", sc.GetRunAsUsername())
	}
	c.groups(field, sc.GetSupplementalGroups(), sc.GetSupplementalGroupsPolicy())
	c.selinux(field, sc.GetSelinuxOptions())
	c.paths(field+".masked_paths", sc.GetMaskedPaths())
	c.paths(field+".readonly_paths", sc.GetReadonlyPaths())
	if sc.GetPrivileged() {
		return // CRI: seccomp and AppArmor have no effect
	}
	//lint:ignore SA1019 old kubelets send only these strings
	c.seccomp(field, sc.GetSeccomp(), sc.GetSeccompProfilePath())
	//lint:ignore SA1019 as above
	c.apparmor(field, sc.GetApparmor(), sc.GetApparmorProfile(), apparmor)
}

// Recursive refuses recursive read-only mounts where the pod's handler cannot
// make them. The text is the kubelet's.
func (c *Check) Recursive(config *runtimeapi.ContainerConfig, handler func() Handler) {
	for i, m := range config.GetMounts() {
		if !m.GetRecursiveReadOnly() {
			continue
		}
		if h := handler(); !h.RecursiveReadOnly {
			c.fail(fault.Unimplemented, "RROUnsupported", "config.mounts[%d].recursive_read_only: handler %q cannot do it", i, h.Name)
		}
	}
}
