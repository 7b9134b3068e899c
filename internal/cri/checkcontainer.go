package cri

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// checkContainer checks CreateContainer's config for a container in a pod
// with the given config. What needs the disk, or an image, is checked where
// it is used.
func (c *check) checkContainer(config *runtimeapi.ContainerConfig, in *runtimeapi.PodSandboxConfig, node *Config) {
	if config == nil {
		c.bad("config", "is missing")
		return
	}
	if config.GetMetadata() == nil {
		c.bad("config.metadata", "is missing")
	}
	c.name("config.metadata.name", config.GetMetadata().GetName())
	c.image("config.image", config.GetImage(), node)
	c.words("config.command", config.GetCommand())
	c.words("config.args", config.GetArgs())
	if dir := config.GetWorkingDir(); dir != "" {
		c.absolute("config.working_dir", dir)
	}
	c.envs("config.envs", config.GetEnvs())
	for i, m := range config.GetMounts() {
		c.mount(fmt.Sprintf("config.mounts[%d]", i), m)
	}
	c.devices("config.devices", config.GetDevices())
	if len(config.GetCDIDevices()) > 0 {
		c.lacking("config.CDI_devices", "CDI is not implemented")
	}
	if path := config.GetLogPath(); path != "" {
		c.text("config.log_path", path)
		if !filepath.IsLocal(path) || filepath.Clean(path) == "." {
			c.bad("config.log_path", "%q is not a path below the pod's log_directory", path)
		}
	}
	c.enum("config.stop_signal", int32(config.GetStopSignal()), runtimeapi.Signal_name)
	c.resources("config.linux.resources", config.GetLinux().GetResources())
	c.containerSecurity("config.linux.security_context", config.GetLinux().GetSecurityContext(), in, node.AppArmor)
}

func (c *check) image(field string, i *runtimeapi.ImageSpec, node *Config) {
	if i == nil {
		c.bad(field, "is missing")
	}
	c.set(field+".image", i.GetImage())
	c.text(field+".image", i.GetImage())
	c.handler(field+".runtime_handler", i.GetRuntimeHandler(), node)
}

func (c *check) handler(field, name string, node *Config) {
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
	c.bad(field, "%q is not a runtime handler of this node; known: %s", name, strings.Join(names, ", "))
}

func (c *check) words(field string, words []string) {
	for i, w := range words {
		c.text(fmt.Sprintf("%s[%d]", field, i), w)
	}
}

func (c *check) envs(field string, envs []*runtimeapi.KeyValue) {
	for i, e := range envs {
		f := fmt.Sprintf("%s[%d]", field, i)
		c.set(f+".key", e.GetKey())
		c.text(f+".key", e.GetKey())
		if strings.Contains(e.GetKey(), "=") {
			c.bad(f+".key", "%q contains an equals sign", e.GetKey())
		}
		if slices.Contains(e.GetValue(), 0) {
			c.bad(f+".value", "of %q contains a zero byte", e.GetKey())
		}
	}
}

func (c *check) mount(field string, m *runtimeapi.Mount) {
	c.absolute(field+".container_path", m.GetContainerPath())
	if path := m.GetContainerPath(); path != "" && filepath.Clean(path) == "/" {
		c.bad(field+".container_path", "is the root itself")
	}
	propagation := c.enum(field+".propagation", int32(m.GetPropagation()), runtimeapi.MountPropagation_name)
	if m.GetImage() != nil {
		c.imageMount(field, m)
		return
	}
	c.absolute(field+".host_path", m.GetHostPath())
	if m.GetImageSubPath() != "" {
		c.bad(field+".image_sub_path", "is set without an image")
	}
	if m.GetRecursiveReadOnly() {
		if !m.GetReadonly() {
			c.bad(field+".recursive_read_only", "is set without readonly")
		}
		if m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
			c.bad(field+".recursive_read_only", "is set, which %s excludes", propagation)
		}
	}
	if len(m.GetUidMappings()) > 0 {
		c.lacking(field+".uidMappings", "ID-mapped mounts are not implemented")
	}
	if len(m.GetGidMappings()) > 0 {
		c.lacking(field+".gidMappings", "ID-mapped mounts are not implemented")
	}
	for i, o := range m.GetMountOptions() {
		if o != "noexec" && o != "nodev" && o != "nosuid" {
			c.bad(fmt.Sprintf("%s.mount_options[%d]", field, i), "%q is not noexec, nodev or nosuid", o)
		}
	}
}

// imageMount checks a volume that is an image. Its errors start with the text
// that the kubelet looks for.
func (c *check) imageMount(field string, m *runtimeapi.Mount) {
	field = "ImageVolumeMountFailed: " + field
	c.set(field+".image.image", m.GetImage().GetImage())
	if m.GetHostPath() != "" {
		c.bad(field+".host_path", "is set beside an image")
	}
	if !m.GetReadonly() {
		c.bad(field+".readonly", "is false, but image volumes are read-only")
	}
	c.lacking(field+".image", "image volumes are not implemented")
}

func (c *check) devices(field string, devices []*runtimeapi.Device) {
	for i, d := range devices {
		f := fmt.Sprintf("%s[%d]", field, i)
		c.absolute(f+".host_path", d.GetHostPath())
		c.absolute(f+".container_path", d.GetContainerPath())
		if p := d.GetPermissions(); p == "" || strings.Trim(p, "rwm") != "" {
			c.bad(f+".permissions", "%q is not one or more of r, w and m", p)
		}
	}
}

func (c *check) containerSecurity(field string, sc *runtimeapi.LinuxContainerSecurityContext, in *runtimeapi.PodSandboxConfig, apparmor bool) {
	of := in.GetLinux().GetSecurityContext()
	if sc.GetPrivileged() && !of.GetPrivileged() {
		c.bad(field+".privileged", "is set, but the pod is not privileged")
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
			c.bad(field+".namespace_options."+m.name, "is NODE, but the pod's is %s", m.podsMode)
		}
	}
	c.id(field+".run_as_user", sc.GetRunAsUser())
	c.id(field+".run_as_group", sc.GetRunAsGroup())
	if sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "" {
		c.bad(field+".run_as_username", "is set beside run_as_user")
	}
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "" {
		c.bad(field+".run_as_group", "is set without run_as_user or run_as_username")
	}
	if strings.ContainsAny(sc.GetRunAsUsername(), ":\n\x00") {
		c.bad(field+".run_as_username", "%q is not a user name", sc.GetRunAsUsername())
	}
	c.groups(field, sc.GetSupplementalGroups(), sc.GetSupplementalGroupsPolicy())
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

// recursive refuses recursive read-only mounts where the pod's handler cannot
// make them. The text is the kubelet's.
func (c *check) recursive(config *runtimeapi.ContainerConfig, handler func() Handler) {
	for i, m := range config.GetMounts() {
		if !m.GetRecursiveReadOnly() {
			continue
		}
		if h := handler(); !h.RecursiveReadOnly {
			c.fail(fault.Unimplemented, "RROUnsupported", "config.mounts[%d].recursive_read_only: handler %q cannot do it", i, h.Name)
		}
	}
}
