package play

import (
	"context"
	"errors"
	"hash/fnv"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pods with a user namespace have IDs of the host's to themselves, a block each,
// as from a kubelet. The blocks are where no kubelet, login or systemd gives any.
//
// systemd: docs/UIDS-GIDS.md, "Unused".
const (
	blockIDs   = 1 << 16
	firstBlock = 0x70000000 / blockIDs
	blocks     = 0x0ff0
)

func hasUsers(s *corev1.PodSpec) bool { return s.HostUsers != nil && !*s.HostUsers }

// chooseUsers chooses a block of IDs that no pod has, and writes it on the pod.
func (l *launch) chooseUsers(ctx context.Context) error {
	if !hasUsers(&l.pod.Spec) {
		return nil
	}
	all, err := l.sandboxes(ctx, nil)
	if err != nil {
		return err
	}
	taken := map[string]bool{}
	for _, s := range all {
		taken[s.Annotations[annotationUsers]] = true
	}
	h := fnv.New32a() // two that choose at a time seldom choose one
	_, _ = h.Write([]byte(l.pod.UID))
	for i := range uint32(blocks) {
		first := strconv.Itoa(int(firstBlock+(h.Sum32()+i)%blocks) * blockIDs)
		if !taken[first] {
			if l.pod.Annotations == nil {
				l.pod.Annotations = map[string]string{}
			}
			l.pod.Annotations[annotationUsers] = first
			return nil
		}
	}
	return errors.New("all user IDs for pods with hostUsers: false are in use")
}

// idMappings are those of the pod's user namespace; none without one.
func idMappings(pod *corev1.Pod) []*runtimeapi.IDMapping {
	first, err := strconv.ParseUint(pod.Annotations[annotationUsers], 10, 32)
	if !hasUsers(&pod.Spec) || err != nil {
		return nil
	}
	return []*runtimeapi.IDMapping{{HostId: uint32(first), Length: blockIDs}}
}
