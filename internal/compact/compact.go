// Package compact keeps what is known of a container that has exited in few
// bytes: some thousands of them may wait for the kubelet to remove them.
//
// It is pure, and knows the CRI's messages only. Package pod calls it, once when
// a container has exited and again whenever somebody asks.
package compact

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
	"sync"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A Container is what of a container is worth compressing.
type Container struct {
	Config    *runtimeapi.ContainerConfig
	Resources *runtimeapi.LinuxContainerResources
	Rest      []byte // anything
}

// mark is the length of the checksum at the beginning, of dictionary and the rest.
const mark = 4

// Readable reports whether Pack returned this, in a process with the same dictionary.
func Readable(packed []byte) bool {
	return len(packed) > mark && binary.BigEndian.Uint32(packed) == words().sumWith(packed[mark:])
}

// Pack returns c in few bytes: what Brief returns, then the rest, each
// compressed, the first with its length before it.
func Pack(c Container) ([]byte, error) {
	brief, err := proto.Marshal(briefOf(c.Config))
	if err != nil {
		return nil, err
	}
	// The parts of a message may stand apart: put together, they are the whole.
	var rest []byte
	for _, m := range []proto.Message{restOf(c.Config), c.Resources} {
		part, err := proto.Marshal(m)
		if err != nil {
			return nil, err
		}
		rest = append(binary.AppendUvarint(rest, uint64(len(part))), part...)
	}
	rest = append(rest, c.Rest...)
	brief, rest = words().EncodeBetter(nil, brief), words().EncodeBetter(nil, rest)
	packed := make([]byte, 0, mark+binary.MaxVarintLen16+len(brief)+len(rest))
	packed = binary.AppendUvarint(packed[:mark], uint64(len(brief)))
	packed = append(append(packed, brief...), rest...)
	binary.BigEndian.PutUint32(packed, words().sumWith(packed[mark:]))
	return packed, nil
}

func briefOf(c *runtimeapi.ContainerConfig) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{Metadata: c.GetMetadata(), Image: c.GetImage(), Labels: c.GetLabels(), Annotations: c.GetAnnotations()}
}

// restOf returns a configuration without what briefOf has; it shares the rest.
func restOf(c *runtimeapi.ContainerConfig) *runtimeapi.ContainerConfig {
	rest := &runtimeapi.ContainerConfig{}
	c.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		rest.ProtoReflect().Set(f, v)
		return true
	})
	rest.Metadata, rest.Image, rest.Labels, rest.Annotations = nil, nil, nil, nil
	return rest
}

// Whole returns what Pack was given.
func Whole(packed []byte) (Container, error) {
	_, rest, err := parts(packed)
	if err != nil {
		return Container{}, err
	}
	c := Container{Resources: &runtimeapi.LinuxContainerResources{}}
	if c.Config, err = Brief(packed); err != nil {
		return Container{}, err
	}
	if rest, err = words().Decode(nil, rest); err != nil {
		return Container{}, err
	}
	for _, m := range []proto.Message{c.Config, c.Resources} {
		var part []byte
		if part, rest, err = cut(rest); err != nil {
			return Container{}, err
		}
		if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(part, m); err != nil {
			return Container{}, err
		}
	}
	c.Rest = rest
	return c, nil
}

// Brief returns the configuration's name, image, labels and annotations only:
// what lists show, in a fraction of the time.
func Brief(packed []byte) (*runtimeapi.ContainerConfig, error) {
	brief, _, err := parts(packed)
	if err != nil {
		return nil, err
	}
	if brief, err = words().Decode(nil, brief); err != nil {
		return nil, err
	}
	c := &runtimeapi.ContainerConfig{}
	return c, proto.Unmarshal(brief, c)
}

func parts(packed []byte) (brief, rest []byte, err error) {
	if !Readable(packed) {
		return nil, nil, errDamaged
	}
	return cut(packed[mark:])
}

var errDamaged = errors.New("compact: not what Pack returned")

// cut cuts off what has its length before it.
func cut(text []byte) (first, rest []byte, err error) {
	n, width := binary.Uvarint(text)
	if width <= 0 || n > uint64(len(text)-width) {
		return nil, nil, errDamaged
	}
	return text[width:][:n:n], text[width+int(n):], nil
}

// A wordlist is the dictionary, ready, and what tells it from others.
type wordlist struct {
	*s2.Dict
	sum uint32
}

func (w wordlist) sumWith(data []byte) uint32 { return crc32.Update(w.sum, crc32.IEEETable, data) }

// words is made when the first container has exited.
var words = sync.OnceValue(func() wordlist {
	text := []byte(strings.Join(dictionary, "\x12"))
	return wordlist{s2.MakeDict(text, nil), crc32.ChecksumIEEE(text)}
})

// dictionary is what configurations by a kubelet have in common. It says how
// well they are compressed, not which can be.
var dictionary = []string{
	"/sys/fs/cgroup/memory/", "/sys/fs/cgroup/cpu,cpuacct/", "/sys/fs/cgroup/pids/", "/sys/fs/cgroup/unified/kubepods/besteffort/pod",
	`{"Place":{"Parent":"/kubepods/burstable/pod","ID":"","Path":"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod","Dirs":["/sys/fs/cgroup/`,
	`"OOMEvents":"/sys/fs/cgroup/memory/kubepods/burstable/pod/memory.oom_control"},"LogPath":"/var/log/pods/`, `"User":{"UID":0,"GID":0,"AdditionalGids":[0],"Name":"root","Home":"/root"}`,
	"hugepages-1Gi", "1GB", "2MB", "memory.high", "memory.oom.group", "max",
	"KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBERNETES_SERVICE_PORT_HTTPS", "KUBERNETES_PORT", "tcp://10.96.0.1:443",
	"KUBERNETES_PORT_443_TCP", "KUBERNETES_PORT_443_TCP_PROTO", "tcp", "KUBERNETES_PORT_443_TCP_PORT", "443", "KUBERNETES_PORT_443_TCP_ADDR",
	"_SERVICE_HOST", "_SERVICE_PORT", "_PORT_80_TCP_PROTO", "_PORT_80_TCP_PORT", "_PORT_80_TCP_ADDR", "_PORT_80_TCP", "tcp://10.96.", "PATH", "HOSTNAME", "/bin/sh", "-c",
	"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
	"/sys/firmware", "/sys/devices/virtual/powercap", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
	"/dev/termination-log", "/etc/hosts", "/var/run/secrets/kubernetes.io/serviceaccount", "/volumes/kubernetes.io~projected/kube-api-access-",
	"/volumes/kubernetes.io~configmap/", "/volumes/kubernetes.io~secret/", "/volumes/kubernetes.io~empty-dir/", "/etc-hosts", "/containers/", "/var/lib/kubelet/pods/",
	"sha256:", "io.kubernetes.container.hash", "io.kubernetes.container.ports", `[{"name":"http","containerPort":8080,"protocol":"TCP"}]`, "io.kubernetes.container.preStopHandler",
	"io.kubernetes.container.restartCount", "io.kubernetes.container.terminationMessagePath", "io.kubernetes.container.terminationMessagePolicy", "File",
	"io.kubernetes.pod.terminationGracePeriod", "30", "io.kubernetes.container.name", "io.kubernetes.pod.name", "io.kubernetes.pod.namespace", "default", "io.kubernetes.pod.uid",
}
