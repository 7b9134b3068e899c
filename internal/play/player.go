package play

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A Player makes pods through one runtime.
type Player struct {
	Pods    runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient
	Dir     string        // files of played pods
	LogDir  string        // logs of pods
	Timeout time.Duration // of one call, pulls excepted; 0 is none
	Node    Node
	Step    func(what, name string) (end func(outcome string)) // told of each step
}

// A ContainerError is a container that ended, or did not start, against the
// manifest's intent.
type ContainerError struct {
	Pod, Container string
	Init           bool
	LogPath        string // absolute
	MessagePath    string // the container's termination message
	Err            error
}

func (e *ContainerError) Error() string {
	kind := "container"
	if e.Init {
		kind = "init container"
	}
	return fmt.Sprintf("%s %s of pod %s %v", kind, e.Container, e.Pod, e.Err)
}

func (e *ContainerError) Unwrap() error { return e.Err }

// launch is one pod on its way up.
type launch struct {
	*Player
	pod     *corev1.Pod
	node    Node
	files   Files
	images  map[string]image // by the manifest's name
	config  *runtimeapi.PodSandboxConfig
	sandbox string
	ips     []string
	rro     bool // the handler can do recursive read-only mounts
	begun   bool // something of it exists
}

// Up makes the pod and returns once all its containers have started: images,
// sandbox, init containers one after the other, containers. It gives the pod
// a uid if it has none. After an error begun says whether anything of the pod
// exists: then the caller either keeps it or calls Down.
//
// An init container that fails is not tried again, whatever restartPolicy
// says; a *ContainerError tells which container failed.
func (p *Player) Up(ctx context.Context, pod *corev1.Pod) (begun bool, err error) {
	if pod.UID == "" {
		pod.UID = newUID()
	}
	l := &launch{Player: p, pod: pod, node: p.Node, images: map[string]image{}}
	l.files = filesOf(pod, p.Dir, p.LogDir)
	host, err := hostDNS()
	if err != nil {
		return false, err
	}
	configure := func(context.Context) error {
		l.config = sandboxConfig(pod, l.files, host)
		return nil
	}
	for _, step := range []func(context.Context) error{
		l.checkFree, l.chooseUsers, configure, l.readFeatures, l.pullImages, l.makeFiles, l.runSandbox, l.runContainers, l.checkAlive,
	} {
		if err := step(ctx); err != nil {
			return l.begun, err
		}
	}
	return true, nil
}

// Down removes the pod, whatever of it exists, and its files.
func (p *Player) Down(ctx context.Context, pod *corev1.Pod) error {
	sandboxes, err := p.sandboxes(ctx, map[string]string{LabelPodUID: string(pod.UID)})
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range sandboxes {
		errs = append(errs, p.remove(ctx, s.Id))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return Clean(filesOf(pod, p.Dir, p.LogDir).Dir, string(pod.UID))
}

func (p *Player) remove(ctx context.Context, id string) error {
	ctx, cancel := p.bound(ctx)
	defer cancel()
	if _, err := p.Pods.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return err
	}
	_, err := p.Pods.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

func (p *Player) sandboxes(ctx context.Context, labels map[string]string) ([]*runtimeapi.PodSandbox, error) {
	ctx, cancel := p.bound(ctx)
	defer cancel()
	r, err := p.Pods.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{
		Filter: &runtimeapi.PodSandboxFilter{LabelSelector: labels},
	})
	return r.GetItems(), err
}

// bound limits one call.
func (p *Player) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if p.Timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, p.Timeout)
}

// checkFree refuses a name that another pod has.
func (l *launch) checkFree(ctx context.Context) error {
	same, err := l.sandboxes(ctx, map[string]string{LabelPodName: l.pod.Name, LabelPodNamespace: l.pod.Namespace})
	if err != nil {
		return err
	}
	if len(same) > 0 {
		return fmt.Errorf("pod %s exists already (%.12s); remove it first: davit rm -f %s", podName(l.pod), same[0].Id, podName(l.pod))
	}
	return nil
}

// readFeatures asks for what depends on the runtime, if the manifest does.
func (l *launch) readFeatures(ctx context.Context) error {
	needed := false
	for c := range eachContainer(&l.pod.Spec) {
		for i := range c.VolumeMounts {
			needed = needed || c.VolumeMounts[i].RecursiveReadOnly != nil
		}
	}
	if !needed {
		return nil
	}
	ctx, cancel := l.bound(ctx)
	defer cancel()
	r, err := l.Pods.Status(ctx, &runtimeapi.StatusRequest{})
	for _, h := range r.GetRuntimeHandlers() {
		if h.Name == l.handler() {
			l.rro = h.Features.GetRecursiveReadOnlyMounts()
		}
	}
	return err
}

func (l *launch) makeFiles(context.Context) error {
	if err := l.files.claim(); err != nil {
		return fmt.Errorf("files of pod %s: %w", podName(l.pod), err)
	}
	l.begun = true
	if err := l.files.fill(l.pod); err != nil {
		return fmt.Errorf("files of pod %s: %w", podName(l.pod), err)
	}
	return nil
}

// handler is the runtime handler: without a cluster there is no RuntimeClass
// object to look it up in, so its name is the handler's.
func (l *launch) handler() string {
	if n := l.pod.Spec.RuntimeClassName; n != nil {
		return *n
	}
	return ""
}

func podName(pod *corev1.Pod) string { return pod.Namespace + "/" + pod.Name }

// newUID returns a random UUID. RFC 9562, version 4.
func newUID() types.UID {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]))
}
