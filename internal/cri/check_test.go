package cri

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/pod"
)

const goodPod = `metadata { name: "web" namespace: "default" uid: "u-1" }
hostname: "web" log_directory: "/var/log/pods/default_web_u-1"
linux { cgroup_parent: "/kubepods/burstable/podu-1" }`

const goodContainer = `metadata { name: "app" } image { image: "sha256:0123" } log_path: "app/0.log"`

// want is a code and a start of the message; with codes.OK the text is empty.
type want struct {
	code codes.Code
	text string
}

func (w want) check(t *testing.T, err error) {
	t.Helper()
	if got := status.Code(err); got != w.code {
		t.Fatalf("code %v, want %v: %v", got, w.code, err)
	}
	if got := status.Convert(err).Message(); !strings.HasPrefix(got, w.text) {
		t.Fatalf("message %q, want it to start with %q", got, w.text)
	}
}

func parse[M proto.Message](t *testing.T, m M, texts ...string) M {
	t.Helper()
	for _, text := range texts {
		part := m.ProtoReflect().New().Interface()
		if err := prototext.Unmarshal([]byte(text), part); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		proto.Merge(m, part)
	}
	return m
}

// users is the rest of a context's namespace options.
const users = `userns_options { mode: POD uids { host_id: 1000 length: 100 } gids { host_id: 1000 length: 100 } } } } }`

func TestPodChecks(t *testing.T) {
	const invalid = codes.InvalidArgument
	const ns = `linux { security_context { namespace_options { `
	const sc = `linux { security_context { `
	for _, tt := range []struct {
		add  string // to goodPod
		want want
	}{
		{``, want{}},
		{`metadata { name: "a/b" }`, want{invalid, `config.metadata.name: "a/b" contains`}},
		{`metadata { name: "a\nb" }`, want{invalid, "config.metadata.name: "}},
		{`metadata { namespace: "a b" }`, want{invalid, "config.metadata.namespace: "}},
		{`metadata { uid: "` + strings.Repeat("x", 254) + `" }`, want{invalid, "config.metadata.uid: is 254 bytes long"}},
		{`hostname: "a.b-c"`, want{}},
		{`hostname: "` + strings.Repeat("x", 64) + `"`, want{}},
		{`hostname: "` + strings.Repeat("x", 65) + `"`, want{invalid, "config.hostname: is 65 bytes"}},
		{`hostname: "-a"`, want{invalid, "config.hostname: "}},
		{`hostname: "a b"`, want{invalid, "config.hostname: "}},
		{ns + `network: NODE } } }`, want{invalid, `config.hostname: "web" is set, but`}},
		{`log_directory: "logs"`, want{invalid, `config.log_directory: "logs" is not an absolute`}},
		{`log_directory: "/var/log/../../etc"`, want{invalid, "config.log_directory: "}},
		{`log_directory: "/var/log/..x"`, want{}},
		{`dns_config { servers: "10.0.0.10" servers: "fe80::1%eth0" searches: "svc.local" options: "ndots:5" }`, want{}},
		{`dns_config { servers: "dns" }`, want{invalid, "config.dns_config.servers[0]: "}},
		{`dns_config { searches: "a\nnameserver 6.6.6.6" }`, want{invalid, "config.dns_config.searches[0]: "}},
		{`dns_config { options: "" }`, want{invalid, "config.dns_config.options[0]: is empty"}},
		{`port_mappings { host_port: 0 container_port: 80 }`, want{}},
		{`port_mappings { host_port: 80 container_port: 80 host_ip: "::1" protocol: SCTP }`, want{}},
		{`port_mappings { host_port: -1 }`, want{invalid, "config.port_mappings[0].host_port: -1"}},
		{`port_mappings { host_port: 65536 }`, want{invalid, "config.port_mappings[0].host_port: 65536"}},
		{`port_mappings { container_port: 70000 }`, want{invalid, "config.port_mappings[0].container_port: 70000"}},
		{`port_mappings { host_port: 80 }`, want{invalid, "config.port_mappings[0].container_port: is missing"}},
		{`port_mappings { protocol: 3 }`, want{invalid, "config.port_mappings[0].protocol: 3"}},
		{`port_mappings { host_ip: "localhost" }`, want{invalid, "config.port_mappings[0].host_ip: "}},
		{`port_mappings { host_ip: "fe80::1%eth0" }`, want{invalid, "config.port_mappings[0].host_ip: "}},
		{`port_mappings { host_port: 80 container_port: 1 } port_mappings { host_port: 80 container_port: 2 }`,
			want{invalid, "config.port_mappings[1].host_port: 80 is mapped to container port 1 already"}},
		{`port_mappings { host_port: 80 container_port: 1 } port_mappings { host_port: 80 container_port: 2 protocol: UDP }`, want{}},
		{`linux { cgroup_parent: "kubepods-besteffort.slice" }`, want{}},
		{`linux { cgroup_parent: "kubepods/a" }`, want{invalid, "config.linux.cgroup_parent: "}},
		{`linux { cgroup_parent: "/kubepods/../system.slice" }`, want{invalid, "config.linux.cgroup_parent: "}},
		{`linux { cgroup_parent: "/a:b" }`, want{invalid, "config.linux.cgroup_parent: "}},
		{ns + `network: CONTAINER } } }`, want{invalid, "config.linux.security_context.namespace_options.network: is CONTAINER"}},
		{ns + `network: 9 } } }`, want{invalid, "config.linux.security_context.namespace_options.network: 9"}},
		{ns + `pid: 9 } } }`, want{invalid, "config.linux.security_context.namespace_options.pid: 9"}},
		{ns + `pid: CONTAINER } } }`, want{}},
		{ns + `pid: TARGET target_id: "x" } } }`, want{invalid, "config.linux.security_context.namespace_options.pid: TARGET"}},
		{ns + `ipc: TARGET } } }`, want{invalid, "config.linux.security_context.namespace_options.ipc: is TARGET"}},
		{ns + `target_id: "x" } } }`, want{invalid, "config.linux.security_context.namespace_options.target_id: "}},
		{ns + `userns_options { mode: NODE } } } }`, want{}},
		{ns + `userns_options { mode: NODE uids { length: 1 } } } } }`, want{invalid, "config.linux.security_context.namespace_options.userns_options.uids: "}},
		{ns + `userns_options { mode: NODE gids { length: 1 } } } } }`, want{invalid, "config.linux.security_context.namespace_options.userns_options.gids: "}},
		{ns + users, want{}},
		{ns + `pid: NODE ` + users, want{invalid, "config.linux.security_context.namespace_options.pid: is NODE, which a user namespace excludes"}},
		{ns + `ipc: NODE ` + users, want{invalid, "config.linux.security_context.namespace_options.ipc: is NODE, which a user namespace excludes"}},
		{ns + `userns_options { mode: POD } } } }`, want{invalid, "config.linux.security_context.namespace_options.userns_options.uids: are 0 mappings"}},
		{ns + `userns_options { mode: POD uids { length: 1 } } } } }`, want{invalid, "config.linux.security_context.namespace_options.userns_options.gids: are 0 mappings"}},
		{ns + `userns_options { mode: POD uids { length: 1 } uids { length: 1 } } } } }`, want{invalid, "config.linux.security_context.namespace_options.userns_options.uids: are 2 mappings"}},
		{ns + `userns_options { mode: POD uids { length: 0 } } } } }`, want{invalid, "config.linux.security_context.namespace_options.userns_options.uids[0].length: is 0"}},
		{ns + `userns_options { mode: POD uids { container_id: 1 length: 1 } } } } }`, want{invalid, "config.linux.security_context.namespace_options.userns_options.uids[0].container_id: is 1"}},
		{ns + `userns_options { mode: POD uids { host_id: 4294967295 length: 1 } } } } }`, want{invalid, "config.linux.security_context.namespace_options.userns_options.uids[0].length: 1 from host_id"}},
		{ns + `userns_options { mode: CONTAINER } } } }`, want{invalid, "config.linux.security_context.namespace_options.userns_options.mode: is CONTAINER"}},
		{ns + `userns_options { mode: TARGET } } } }`, want{invalid, "config.linux.security_context.namespace_options.userns_options.mode: "}},
		{`linux { sysctls { key: "net.ipv4.ip_forward" value: "1" } sysctls { key: "kernel/shm_rmid_forced" value: "1" } }`, want{}},
		{`linux { sysctls { key: "net/ipv4/conf/eth0.1/forwarding" value: "1" } sysctls { key: "fs.mqueue.msg_max" value: "9" } }`, want{}},
		{`linux { sysctls { key: "kernel.panic" value: "1" } }`, want{invalid, `config.linux.sysctls["kernel.panic"]: does not belong`}},
		{`linux { sysctls { key: "%d" value: "1" } }`, want{invalid, `config.linux.sysctls["%d"]: does not`}},
		{`linux { sysctls { key: "net" value: "1" } }`, want{invalid, `config.linux.sysctls["net"]: `}},
		{`linux { sysctls { key: "" value: "1" } }`, want{invalid, `config.linux.sysctls[""]: `}},
		{`linux { sysctls { key: "net/../kernel/panic" value: "1" } }`, want{invalid, `config.linux.sysctls["net/../kernel/panic"]: is not`}},
		{`linux { sysctls { key: "net.//.kernel.panic" value: "1" } }`, want{invalid, `config.linux.sysctls["net.//.kernel.panic"]: is not`}},
		{`linux { sysctls { key: "net.ipv4.ip_forward" value: "1\n" } }`, want{invalid, `config.linux.sysctls["net.ipv4.ip_forward"]: the value`}},
		{`linux { sysctls { key: "kernel.hostname" value: "a" } }`, want{invalid, `config.linux.sysctls["kernel.hostname"]: is set by`}},
		{ns + `ipc: NODE } } sysctls { key: "kernel.sem" value: "1" } }`, want{invalid, `config.linux.sysctls["kernel.sem"]: would change the host`}},
		{sc + `run_as_user { value: 1000 } run_as_group { value: 1000 } } }`, want{}},
		{sc + `run_as_group { value: 1000 } } }`, want{invalid, "config.linux.security_context.run_as_group: is set without"}},
		{sc + `run_as_user { value: -1 } } }`, want{invalid, "config.linux.security_context.run_as_user: -1"}},
		{sc + `run_as_user { value: 4294967295 } } }`, want{invalid, "config.linux.security_context.run_as_user: "}},
		{sc + `run_as_user {} run_as_group { value: -2 } } }`, want{invalid, "config.linux.security_context.run_as_group: -2"}},
		{sc + `supplemental_groups: -1 } }`, want{invalid, "config.linux.security_context.supplemental_groups[0]: -1"}},
		{sc + `supplemental_groups_policy: 7 } }`, want{invalid, "config.linux.security_context.supplemental_groups_policy: 7"}},
		{sc + `seccomp { profile_type: RuntimeDefault } } }`, want{}},
		{sc + `seccomp { profile_type: 5 } } }`, want{invalid, "config.linux.security_context.seccomp.profile_type: 5"}},
		{sc + `seccomp { profile_type: Localhost localhost_ref: "p" } } }`, want{invalid, `config.linux.security_context.seccomp.localhost_ref: "p"`}},
		{sc + `seccomp { profile_type: Unconfined localhost_ref: "/p" } } }`, want{invalid, "config.linux.security_context.seccomp.localhost_ref: is set"}},
		{sc + `seccomp_profile_path: "localhost//p" } }`, want{}},
		{sc + `seccomp_profile_path: "localhost/p" } }`, want{invalid, "config.linux.security_context.seccomp_profile_path: "}},
		{sc + `seccomp_profile_path: "strict" } }`, want{invalid, `config.linux.security_context.seccomp_profile_path: "strict"`}},
		{sc + `apparmor { profile_type: Localhost localhost_ref: "p" } } }`, want{codes.Unimplemented, "config.linux.security_context.apparmor.localhost_ref: profile"}},
		{`linux { resources { cpu_quota: 5 } }`, want{invalid, "config.linux.resources.cpu_quota: 5"}},
		{`linux { overhead { cpu_shares: -5 } }`, want{invalid, "config.linux.overhead.cpu_shares: -5"}},
	} {
		t.Run(tt.add, func(t *testing.T) {
			w := &world{}
			rt, _, _, _ := server(t, w)
			_, err := rt.RunPodSandbox(context.Background(), &runtimeapi.RunPodSandboxRequest{
				Config: parse(t, &runtimeapi.PodSandboxConfig{}, goodPod, tt.add),
			})
			tt.want.check(t, err)
			if err != nil && len(w.done) > 0 {
				t.Errorf("refused, but did %q", w.done)
			}
		})
	}
}

func TestContainerChecks(t *testing.T) {
	const invalid, absent = codes.InvalidArgument, codes.Unimplemented
	const ns = `linux { security_context { namespace_options { `
	const sc = `linux { security_context { `
	const f = "config.linux.security_context."
	for _, tt := range []struct {
		add  string // to goodContainer
		want want
	}{
		{``, want{}},
		{`metadata { name: "a b" }`, want{invalid, "config.metadata.name: "}},
		{`image { runtime_handler: "crun" }`, want{}},
		{`image { runtime_handler: "kata" }`, want{invalid, `config.image.runtime_handler: "kata" is not a runtime handler of this node; known: crun, runc`}},
		{`image { image: "a\x00" }`, want{invalid, "config.image.image: "}},
		{`command: "a\x00b"`, want{invalid, "config.command[0]: contains a zero byte"}},
		{`args: "a" args: "\x00"`, want{invalid, "config.args[1]: "}},
		{`working_dir: "work"`, want{invalid, "config.working_dir: "}},
		{`envs { key: "A.b-c" value: "\xff" }`, want{}}, // any bytes since 1.37
		{`envs { value: "x" }`, want{invalid, "config.envs[0].key: is empty"}},
		{`envs { key: "a=b" }`, want{invalid, "config.envs[0].key: "}},
		{`envs { key: "a" value: "\x00" }`, want{invalid, "config.envs[0].value: "}},
		{`mounts { container_path: "/data" host_path: "/srv" readonly: true recursive_read_only: true }`, want{}},
		{`mounts { container_path: "data" host_path: "/srv" }`, want{invalid, "config.mounts[0].container_path: "}},
		{`mounts { container_path: "/data" }`, want{invalid, "config.mounts[0].host_path: is empty"}},
		{`mounts { container_path: "/data" host_path: "srv" }`, want{invalid, "config.mounts[0].host_path: "}},
		{`mounts { container_path: "/data" host_path: "/srv" propagation: 4 }`, want{invalid, "config.mounts[0].propagation: 4"}},
		{`mounts { container_path: "/data" host_path: "/srv" image_sub_path: "x" }`, want{}}, // as kubelets do
		{`mounts { container_path: "/data" host_path: "/srv" recursive_read_only: true }`, want{invalid, "config.mounts[0].recursive_read_only: is set without readonly"}},
		{`mounts { container_path: "/data" host_path: "/srv" readonly: true recursive_read_only: true propagation: PROPAGATION_BIDIRECTIONAL }`,
			want{invalid, "config.mounts[0].recursive_read_only: is set, which PROPAGATION_BIDIRECTIONAL excludes"}},
		{`mounts { container_path: "/data" host_path: "/srv" uidMappings { length: 1 } gidMappings { length: 1 } }`, want{}},
		{`mounts { container_path: "/data" host_path: "/srv" uidMappings { length: 1 } }`, want{invalid, "config.mounts[0].uidMappings: "}},
		{`mounts { container_path: "/data" host_path: "/srv" gidMappings { length: 1 } }`, want{invalid, "config.mounts[0].uidMappings: "}},
		{`mounts { container_path: "/data" host_path: "/srv" gidMappings { } }`, want{invalid, "config.mounts[0].gidMappings[0].length: is 0"}},
		{`mounts { container_path: "/data" host_path: "/srv" uidMappings { length: 1 } gidMappings { length: 1 } propagation: PROPAGATION_BIDIRECTIONAL }`,
			want{invalid, "config.mounts[0].propagation: is PROPAGATION_BIDIRECTIONAL, which ID mappings exclude"}},
		{`mounts { container_path: "/data" host_path: "/srv" mount_options: "noexec" }`, want{}},
		{`mounts { container_path: "/data" host_path: "/srv" mount_options: "suid" }`, want{invalid, "config.mounts[0].mount_options[0]: "}},
		{`mounts { container_path: "/data" image { image: "x" } readonly: true image_sub_path: "a/b" mount_options: "noexec" }`, want{}},
		{`mounts { container_path: "data" image { image: "x" } readonly: true }`, want{invalid, "ImageVolumeMountFailed: config.mounts[0].container_path: "}},
		{`mounts { container_path: "/data" image { image: "x" } readonly: true image_sub_path: "/etc" }`, want{invalid, "ImageVolumeMountFailed: config.mounts[0].image_sub_path: "}},
		{`mounts { container_path: "/data" image { image: "x" } readonly: true image_sub_path: "etc/../../x" }`, want{invalid, "ImageVolumeMountFailed: config.mounts[0].image_sub_path: "}},
		{`mounts { container_path: "/data" image { image: "x" } readonly: true mount_options: "rw" }`, want{invalid, "ImageVolumeMountFailed: config.mounts[0].mount_options[0]: "}},
		{`mounts { container_path: "/data" image { image: "x" runtime_handler: "nope" } readonly: true }`, want{invalid, "ImageVolumeMountFailed: config.mounts[0].image.runtime_handler: "}},
		{`mounts { container_path: "/data" image { image: "x" } }`, want{invalid, "ImageVolumeMountFailed: config.mounts[0].readonly: "}},
		{`mounts { container_path: "/data" image { image: "x" } host_path: "/a" }`, want{invalid, "ImageVolumeMountFailed: config.mounts[0].host_path: "}},
		{`mounts { container_path: "/data" image { } readonly: true }`, want{invalid, "ImageVolumeMountFailed: config.mounts[0].image.image: "}},
		{`devices { host_path: "/dev/fuse" container_path: "/dev/fuse" permissions: "mrw" }`, want{}},
		{`devices { host_path: "fuse" container_path: "/dev/fuse" permissions: "r" }`, want{invalid, "config.devices[0].host_path: "}},
		{`devices { host_path: "/dev/fuse" permissions: "r" }`, want{invalid, "config.devices[0].container_path: "}},
		{`devices { host_path: "/dev/fuse" container_path: "/dev/fuse" permissions: "rx" }`, want{invalid, "config.devices[0].permissions: "}},
		{`devices { host_path: "/dev/fuse" container_path: "/dev/fuse" }`, want{invalid, "config.devices[0].permissions: "}},
		{`CDI_devices { name: "vendor.com/gpu=0" } CDI_devices { name: "a/b=c" }`, want{}},
		{`CDI_devices { name: "a/b=c" } CDI_devices { name: "gpu0" }`, want{invalid, `config.CDI_devices[1].name: "gpu0" is not as vendor.com/class=device`}},
		{`CDI_devices { }`, want{invalid, `config.CDI_devices[0].name: ""`}},
		{`annotations { key: "cdi.k8s.io/x" value: "a.b/c=d,a.b/c=e" }`, want{}},
		{`annotations { key: "cdi.k8s.io/x" value: "a.b/c=d,e" }`, want{invalid, `config.annotations["cdi.k8s.io/x"]: "e" is not as`}},
		{`log_path: "../other/0.log"`, want{invalid, "config.log_path: "}},
		{`log_path: "/etc/passwd"`, want{invalid, "config.log_path: "}},
		{`log_path: "."`, want{invalid, "config.log_path: "}},
		{`stop_signal: SIGNAL_SIGUSR1`, want{}},
		{`stop_signal: 99`, want{invalid, "config.stop_signal: 99"}},
		{`linux { resources { cpu_quota: -1 cpu_period: 100000 cpu_shares: 2 memory_limit_in_bytes: 1 memory_swap_limit_in_bytes: 1 oom_score_adj: -997 cpuset_cpus: "0-3,8" unified { key: "memory.high" value: "max" } hugepage_limits { page_size: "2MB" } } }`, want{}},
		{`linux { resources { cpu_period: 10 } }`, want{invalid, "config.linux.resources.cpu_period: "}},
		{`linux { resources { cpu_period: 2000000 } }`, want{invalid, "config.linux.resources.cpu_period: "}},
		{`linux { resources { cpu_quota: -2 } }`, want{invalid, "config.linux.resources.cpu_quota: "}},
		{`linux { resources { memory_limit_in_bytes: -2 } }`, want{invalid, "config.linux.resources.memory_limit_in_bytes: "}},
		{`linux { resources { memory_swap_limit_in_bytes: -2 } }`, want{invalid, "config.linux.resources.memory_swap_limit_in_bytes: "}},
		{`linux { resources { memory_limit_in_bytes: 2 memory_swap_limit_in_bytes: 1 } }`, want{invalid, "config.linux.resources.memory_swap_limit_in_bytes: "}},
		{`linux { resources { oom_score_adj: 1001 } }`, want{invalid, "config.linux.resources.oom_score_adj: "}},
		{`linux { resources { cpuset_cpus: "3-1" } }`, want{invalid, "config.linux.resources.cpuset_cpus: "}},
		{`linux { resources { cpuset_mems: "a" } }`, want{invalid, "config.linux.resources.cpuset_mems: "}},
		{`linux { resources { hugepage_limits { page_size: "2MiB" } } }`, want{invalid, "config.linux.resources.hugepage_limits[0].page_size: "}},
		{`linux { resources { unified { key: "../memory.max" value: "1" } } }`, want{invalid, `config.linux.resources.unified["../memory.max"]: `}},
		{`linux { resources { unified { key: "cgroup.freeze" value: "1" } } }`, want{invalid, `config.linux.resources.unified["cgroup.freeze"]: `}},
		{`linux { resources { unified { key: "memory" value: "1" } } }`, want{invalid, `config.linux.resources.unified["memory"]: `}},
		{sc + `privileged: true } }`, want{invalid, f + "privileged: is set, but the pod is not"}},
		{sc + `capabilities { add_capabilities: "net_admin" drop_capabilities: "ALL" add_ambient_capabilities: "CAP_BPF" } } }`, want{}},
		{sc + `capabilities { add_capabilities: "CAP_FLY" } } }`, want{invalid, f + "capabilities.add_capabilities[0]: "}},
		{sc + `capabilities { drop_capabilities: "" } } }`, want{invalid, f + "capabilities.drop_capabilities[0]: "}},
		{sc + `capabilities { add_ambient_capabilities: "x" } } }`, want{invalid, f + "capabilities.add_ambient_capabilities[0]: "}},
		{ns + `network: NODE } } }`, want{invalid, f + "namespace_options.network: is NODE, but the pod's is POD"}},
		{ns + `pid: NODE } } }`, want{invalid, f + "namespace_options.pid: is NODE"}},
		{ns + `ipc: NODE } } }`, want{invalid, f + "namespace_options.ipc: is NODE"}},
		{ns + `pid: TARGET } } }`, want{invalid, f + "namespace_options.target_id: is empty"}},
		{ns + `pid: TARGET target_id: "nobody" } } }`, want{invalid, f + "namespace_options.target_id: no container nobody"}},
		{ns + `pid: TARGET target_id: "c-here" } } }`, want{}},
		{ns + `pid: TARGET target_id: "c-elsewhere" } } }`, want{invalid, f + "namespace_options.target_id: container c-elsewhere is in another pod"}},
		{ns + users, want{invalid, f + "namespace_options.userns_options: is not the pod's"}},
		{ns + `userns_options { mode: NODE } } } }`, want{}},
		{sc + `run_as_user { value: 1 } run_as_username: "bob" } }`, want{invalid, f + "run_as_username: is set beside"}},
		{sc + `run_as_username: "bob" run_as_group { value: 1 } } }`, want{}},
		{sc + `run_as_username: "a:b" } }`, want{invalid, f + "run_as_username: "}},
		{sc + `run_as_group { value: 1 } } }`, want{invalid, f + "run_as_group: is set without"}},
		{sc + `supplemental_groups_policy: 2 } }`, want{invalid, f + "supplemental_groups_policy: 2"}},
		{sc + `masked_paths: "proc" } }`, want{invalid, f + "masked_paths[0]: "}},
		{sc + `readonly_paths: "/" } }`, want{invalid, f + "readonly_paths[0]: "}},
		{sc + `seccomp { profile_type: Localhost } } }`, want{invalid, f + "seccomp.localhost_ref: is empty"}},
		{sc + `seccomp { } seccomp_profile_path: "nonsense" } }`, want{}}, // the new field wins
		{sc + `apparmor_profile: "runtime/default" } }`, want{}},
		{sc + `apparmor_profile: "localhost/p" } }`, want{absent, f + "apparmor_profile: "}},
		{sc + `apparmor_profile: "p" } }`, want{invalid, f + "apparmor_profile: "}},
		{sc + `selinux_options { type: "spc_t" } } }`, want{}}, // ignored without SELinux
		{sc + `selinux_options { user: "system_u" role: "system_r" type: "container_t" level: "s0:c4,c5" } } }`, want{}},
		{sc + `selinux_options { level: "s0" } } }`, want{}},
		{sc + `selinux_options { level: "s0-s0:c0.c1023" } } }`, want{}},
		{sc + `selinux_options { level: "s0-s15:c0.c3,c7" } } }`, want{}},
		{sc + `selinux_options { level: "s0,c4,c5" } } }`, want{invalid, f + `selinux_options.level: "s0,c4,c5"`}},
		{sc + `selinux_options { level: "c4,c5" } } }`, want{invalid, f + "selinux_options.level: "}},
		{sc + `selinux_options { level: "s0:c4\",uid=0" } } }`, want{invalid, f + "selinux_options.level: "}},
		{sc + `selinux_options { type: "a:b" } } }`, want{invalid, f + "selinux_options.type: "}},
		{sc + `selinux_options { user: "a b" } } }`, want{invalid, f + "selinux_options.user: "}},
	} {
		t.Run(tt.add, func(t *testing.T) {
			p := parse(t, &runtimeapi.PodSandboxConfig{}, goodPod)
			w := &world{
				pods:       []*pod.Snapshot{{ID: "p", Config: p, State: pod.Ready}},
				containers: []*pod.ContainerSnapshot{{ID: "c-here", PodID: "p"}, {ID: "c-elsewhere", PodID: "q"}},
			}
			rt, _, _, _ := server(t, w)
			_, err := rt.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{
				PodSandboxId: "p", Config: parse(t, &runtimeapi.ContainerConfig{}, goodContainer, tt.add),
			})
			tt.want.check(t, err)
			if err != nil && len(w.done) > 0 {
				t.Errorf("refused, but did %q", w.done)
			}
		})
	}
}

// Containers have their pod's user namespace, said again or not.
func TestContainerInUserNamespace(t *testing.T) {
	const sc = `linux { security_context { namespace_options { `
	const f = "config.linux.security_context.namespace_options.userns_options: is not the pod's"
	invalid := codes.InvalidArgument
	for _, tt := range []struct {
		add  string
		want want
	}{
		{``, want{}},
		{sc + users, want{}},
		{sc + `userns_options { mode: NODE } } } }`, want{invalid, f}},
		{sc + `userns_options { mode: POD uids { host_id: 2000 length: 100 } gids { host_id: 1000 length: 100 } } } } }`, want{invalid, f}},
		{`mounts { container_path: "/data" host_path: "/srv" propagation: PROPAGATION_BIDIRECTIONAL }`, want{invalid, "config.mounts[0].propagation: "}},
	} {
		p := parse(t, &runtimeapi.PodSandboxConfig{}, goodPod, sc+users)
		rt, _, _, _ := server(t, &world{pods: []*pod.Snapshot{{ID: "p", Config: p, State: pod.Ready}}})
		_, err := rt.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{
			PodSandboxId: "p", Config: parse(t, &runtimeapi.ContainerConfig{}, goodContainer, tt.add),
		})
		tt.want.check(t, err)
	}
}

func TestHandlerWithoutUserNamespaces(t *testing.T) {
	rt, _, _, _ := server(t, &world{})
	_, err := rt.RunPodSandbox(context.Background(), &runtimeapi.RunPodSandboxRequest{
		Config:         parse(t, &runtimeapi.PodSandboxConfig{}, goodPod, `linux { security_context { namespace_options { `+users),
		RuntimeHandler: "runc",
	})
	want{codes.Unimplemented, `config.linux.security_context.namespace_options.userns_options: handler "runc"`}.check(t, err)
	onHost := parse(t, &runtimeapi.PodSandboxConfig{}, goodPod, `linux { security_context { namespace_options { network: NODE `+users)
	onHost.Hostname = ""
	_, err = rt.RunPodSandbox(context.Background(), &runtimeapi.RunPodSandboxRequest{Config: onHost})
	want{codes.Unimplemented, `config.linux.security_context.namespace_options.network: NODE: handler "crun"`}.check(t, err)
}

func TestHandlerWithoutRecursiveReadOnly(t *testing.T) {
	w := &world{pods: []*pod.Snapshot{{ID: "p", Handler: "runc", Config: parse(t, &runtimeapi.PodSandboxConfig{}, goodPod)}}}
	rt, _, _, _ := server(t, w)
	_, err := rt.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: "p", Config: parse(t, &runtimeapi.ContainerConfig{}, goodContainer,
			`mounts { container_path: "/data" host_path: "/srv" readonly: true recursive_read_only: true }`),
	})
	want{codes.Unimplemented, "RROUnsupported: "}.check(t, err)
}

func TestRequestChecks(t *testing.T) {
	ctx := context.Background()
	w := &world{pods: []*pod.Snapshot{{ID: "p", Config: parse(t, &runtimeapi.PodSandboxConfig{}, goodPod)}}}
	rt, im, _, _ := server(t, w)
	good := parse(t, &runtimeapi.PodSandboxConfig{}, goodPod)
	bad := func(text string) want { return want{codes.InvalidArgument, text} }
	for name, tt := range map[string]struct {
		call func() error
		want want
	}{
		"run nothing": {func() error { _, err := rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{}); return err }, bad("config: is missing")},
		"run without metadata": {func() error {
			_, err := rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{}})
			return err
		}, bad("config.metadata: is missing")},
		"run by an unknown handler": {func() error {
			_, err := rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: good, RuntimeHandler: "kata"})
			return err
		}, bad(`runtime_handler: "kata"`)},
		"run by a known handler": {func() error {
			_, err := rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: good, RuntimeHandler: "runc"})
			return err
		}, want{}},
		"stop pod":   {func() error { _, err := rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{}); return err }, bad("pod_sandbox_id: ")},
		"remove pod": {func() error { _, err := rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{}); return err }, bad("pod_sandbox_id: ")},
		"pod status": {func() error { _, err := rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{}); return err }, bad("pod_sandbox_id: ")},
		"status of an unknown pod": {func() error {
			_, err := rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "x"})
			return err
		}, want{codes.NotFound, "no pod x"}},
		"list pods": {func() error {
			_, err := rt.ListPodSandbox(ctx, parse(t, &runtimeapi.ListPodSandboxRequest{}, `filter { state { state: 5 } }`))
			return err
		}, bad("filter.state.state: 5")},
		"create without a pod": {func() error { _, err := rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{}); return err }, bad("pod_sandbox_id: ")},
		"create in an unknown pod": {func() error {
			_, err := rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: "x"})
			return err
		}, want{codes.NotFound, "no pod x"}},
		"create nothing": {func() error {
			_, err := rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: "p"})
			return err
		}, bad("config: is missing")},
		"create without metadata": {func() error {
			_, err := rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: "p", Config: &runtimeapi.ContainerConfig{}})
			return err
		}, bad("config.metadata: is missing")},
		"create without an image": {func() error {
			_, err := rt.CreateContainer(ctx, parse(t, &runtimeapi.CreateContainerRequest{}, `pod_sandbox_id: "p" config { metadata { name: "a" } }`))
			return err
		}, bad("config.image: is missing")},
		"start": {func() error { _, err := rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{}); return err }, bad("container_id: ")},
		"stop":  {func() error { _, err := rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{}); return err }, bad("container_id: ")},
		"stop in the past": {func() error {
			_, err := rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "c", Timeout: -1})
			return err
		}, bad("timeout: -1")},
		"remove": {func() error { _, err := rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{}); return err }, bad("container_id: ")},
		"status": {func() error { _, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{}); return err }, bad("container_id: ")},
		"list": {func() error {
			_, err := rt.ListContainers(ctx, parse(t, &runtimeapi.ListContainersRequest{}, `filter { state { state: 5 } }`))
			return err
		}, bad("filter.state.state: 5")},
		"update": {func() error {
			_, err := rt.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: "c"})
			return err
		}, bad("linux: is missing")},
		"update badly": {func() error {
			_, err := rt.UpdateContainerResources(ctx, parse(t, &runtimeapi.UpdateContainerResourcesRequest{}, `container_id: "c" linux { cpu_quota: 1 }`))
			return err
		}, bad("linux.cpu_quota: 1")},
		"update no pod": {func() error {
			_, err := rt.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{})
			return err
		}, bad("pod_sandbox_id: ")},
		"update a pod badly": {func() error {
			_, err := rt.UpdatePodSandboxResources(ctx, parse(t, &runtimeapi.UpdatePodSandboxResourcesRequest{}, `pod_sandbox_id: "p" overhead { cpu_shares: -1 }`))
			return err
		}, bad("overhead.cpu_shares: -1")},
		"reopen": {func() error {
			_, err := rt.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{})
			return err
		}, bad("container_id: ")},
		"exec nothing": {func() error { _, err := rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: "c"}); return err }, bad("cmd: is empty")},
		"exec a zero byte": {func() error {
			_, err := rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: "c", Cmd: []string{"a", "\x00"}})
			return err
		}, bad("cmd[1]: ")},
		"exec in the past": {func() error {
			_, err := rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: "c", Cmd: []string{"a"}, Timeout: -1})
			return err
		}, bad("timeout: ")},
		"pull nothing":   {func() error { _, err := im.PullImage(ctx, &runtimeapi.PullImageRequest{}); return err }, bad("image: is missing")},
		"status nothing": {func() error { _, err := im.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{}); return err }, bad("image: is missing")},
		"remove nothing": {func() error {
			_, err := im.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{}})
			return err
		}, bad("image.image: is empty")},
	} {
		t.Run(name, func(t *testing.T) { tt.want.check(t, tt.call()) })
	}
}
