package compact

import (
	"bytes"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fromKubelet is a container as a kubelet asks for one.
func fromKubelet(i int) Container {
	uid := fmt.Sprintf("8d3c6f3e-5d0c-4c4b-9d0e-%012d", i)
	pod, id := fmt.Sprintf("batch-%08x-x7k2p", i*2654435761), fmt.Sprintf("%064x", i)
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "worker", Attempt: uint32(i % 7)},
		Image:    &runtimeapi.ImageSpec{Image: "sha256:743c47fca7d15fba5d095b604e119aa99ef0abf7b5a0a0b22b475e25d5ae5cc7", UserSpecifiedImage: "registry.example/team/batch-worker:v1.24.7"},
		Command:  []string{"/usr/local/bin/worker", "--queue=high", "--config=/etc/worker/config.yaml"},
		Labels: map[string]string{
			"io.kubernetes.container.name": "worker", "io.kubernetes.pod.name": pod,
			"io.kubernetes.pod.namespace": "batch", "io.kubernetes.pod.uid": uid,
		},
		Annotations: map[string]string{
			"io.kubernetes.container.hash": fmt.Sprintf("%08x", i*40503), "io.kubernetes.container.restartCount": fmt.Sprint(i % 7),
			"io.kubernetes.container.terminationMessagePath":   "/dev/termination-log",
			"io.kubernetes.container.terminationMessagePolicy": "File", "io.kubernetes.pod.terminationGracePeriod": "30",
			"io.kubernetes.container.ports": `[{"name":"http","containerPort":8080,"protocol":"TCP"}]`,
		},
		LogPath: fmt.Sprintf("worker/%d.log", i%7),
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{
				CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 512 << 20, OomScoreAdj: 985,
				HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}},
			},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				RunAsUser:        &runtimeapi.Int64Value{Value: 1000},
				MaskedPaths:      []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
				ReadonlyPaths:    []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
		},
	}
	for _, service := range []string{"KUBERNETES", "REDIS", "POSTGRES", "QUEUE"} {
		for _, v := range []string{"_SERVICE_HOST", "_SERVICE_PORT", "_PORT", "_PORT_80_TCP", "_PORT_80_TCP_PROTO", "_PORT_80_TCP_PORT", "_PORT_80_TCP_ADDR"} {
			c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: service + v, Value: []byte("tcp://10.96.12.7:80")})
		}
	}
	dir := "/var/lib/kubelet/pods/" + uid
	for from, to := range map[string]string{
		"/volumes/kubernetes.io~projected/kube-api-access-7xk2p": "/var/run/secrets/kubernetes.io/serviceaccount",
		"/volumes/kubernetes.io~configmap/config":                "/etc/worker", "/etc-hosts": "/etc/hosts",
		fmt.Sprintf("/containers/worker/%08x", i*7919): "/dev/termination-log",
	} {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: dir + from, ContainerPath: to})
	}
	place := "/kubepods/burstable/pod" + uid + "/" + id
	return Container{Config: c, Resources: c.Linux.Resources, Rest: []byte(
		`{"Place":{"Parent":"/kubepods/burstable/pod` + uid + `","ID":"` + id + `","Path":"` + place + `","Dirs":["/sys/fs/cgroup/memory` + place +
			`","/sys/fs/cgroup/cpu,cpuacct` + place + `","/sys/fs/cgroup/pids` + place + `"]},"LogPath":"/var/log/pods/batch_` + pod + "_" + uid + `/worker/0.log"}`)}
}

func TestPack(t *testing.T) {
	for name, c := range map[string]Container{
		"kubelet": fromKubelet(1), "nothing": {}, "empty": {Config: &runtimeapi.ContainerConfig{}, Rest: []byte("x")},
		"not text": {Config: &runtimeapi.ContainerConfig{Envs: []*runtimeapi.KeyValue{{Key: "a", Value: []byte("\xff")}}}},
	} {
		packed, err := Pack(c)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := Whole(packed)
		if err != nil || !bytes.Equal(got.Rest, c.Rest) || c.Config != nil && !proto.Equal(got.Config, c.Config) || c.Resources != nil && !proto.Equal(got.Resources, c.Resources) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		brief, err := Brief(packed)
		if want := briefOf(c.Config); err != nil || !proto.Equal(brief, want) {
			t.Errorf("%s: in brief %v, %v", name, brief, err)
		}
	}
	good, _ := Pack(fromKubelet(1))
	broken := bytes.Clone(good)
	broken[len(broken)/2] ^= 1
	for _, bad := range [][]byte{nil, []byte("x"), []byte("others"), good[:mark], good[:len(good)-1], broken} {
		if Readable(bad) {
			t.Errorf("%v is readable", bad)
		}
		if _, err := Whole(bad); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}

func TestSmall(t *testing.T) {
	c := fromKubelet(5)
	packed, err := Pack(c)
	before := proto.Size(c.Config) + proto.Size(c.Resources) + len(c.Rest)
	if err != nil || len(packed) > 1200 || before < 3000 {
		t.Errorf("%d bytes of %d, %v", len(packed), before, err)
	}
}

func BenchmarkPack(b *testing.B) {
	c := fromKubelet(5)
	for b.Loop() {
		_, _ = Pack(c)
	}
}

func BenchmarkWhole(b *testing.B) {
	packed, _ := Pack(fromKubelet(5))
	for b.Loop() {
		_, _ = Whole(packed)
	}
}

func BenchmarkBrief(b *testing.B) {
	packed, _ := Pack(fromKubelet(5))
	for b.Loop() {
		_, _ = Brief(packed)
	}
}
