package kubelet

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"
)

// manifest reads a pod of testdata, with the node's images and paths.
func (n *node) manifest(name string) *corev1.Pod {
	n.t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
	if err != nil {
		n.t.Fatal(err)
	}
	p := &corev1.Pod{}
	if err := yaml.UnmarshalStrict(text, p); err != nil {
		n.t.Fatalf("%s: %v", name, err)
	}
	p.Namespace = "default"
	stretch(p)
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			list[i].Image = n.runtime.images[list[i].Image]
		}
	}
	for _, v := range p.Spec.Volumes {
		if v.HostPath != nil {
			v.HostPath.Path = filepath.Join(n.dir, v.HostPath.Path)
			if err := os.MkdirAll(filepath.Dir(v.HostPath.Path), 0o755); err != nil {
				n.t.Fatal(err)
			}
		}
		if v.Image != nil {
			v.Image.Reference = n.runtime.images[v.Image.Reference]
		}
	}
	return p
}

// stretch gives a pod on a slow machine as much more time as that needs: a
// probe that is not answered within its second would have it restarted.
func stretch(p *corev1.Pod) {
	longer := func(seconds *int64) {
		if seconds != nil {
			*seconds = int64(float64(*seconds) * *slow)
		}
	}
	longer(p.Spec.ActiveDeadlineSeconds)
	longer(p.Spec.TerminationGracePeriodSeconds)
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		for _, probe := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
			if probe != nil {
				probe.TimeoutSeconds = int32(float64(max(1, probe.TimeoutSeconds)) * *slow)
			}
		}
	}
}

// put gives the kubelet a pod.
func (n *node) put(p *corev1.Pod) {
	n.t.Helper()
	p.TypeMeta.APIVersion, p.TypeMeta.Kind = "v1", "Pod"
	text, err := json.Marshal(p)
	if err != nil {
		n.t.Fatal(err)
	}
	hidden := filepath.Join(n.pods, "."+p.Name)
	if err := os.WriteFile(hidden, text, 0o644); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(hidden, filepath.Join(n.pods, p.Name+".json")); err != nil {
		n.t.Fatal(err)
	}
}

// take takes pods away and waits until they were stopped.
func (n *node) take(names ...string) {
	n.t.Helper()
	for _, name := range names {
		if err := os.Remove(filepath.Join(n.pods, name+".json")); err != nil {
			n.t.Fatal(err)
		}
	}
	c := n.runtime.client(n.t)
	eventually(n.t, time.Minute, func() error {
		for _, p := range n.list() {
			if name := plain(&p); slices.Contains(names, name) {
				return fmt.Errorf("%s is still there", name)
			}
		}
		// A kubelet shows a pod no more that is still being stopped.
		pods, err := c.ListPodSandbox(n.t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			return err
		}
		for _, p := range pods.Items {
			if name := strings.TrimSuffix(p.Metadata.Name, "-node"); slices.Contains(names, name) && p.State == runtimeapi.PodSandboxState_SANDBOX_READY {
				return fmt.Errorf("%s still runs", name)
			}
		}
		return nil
	})
}

// plain is a static pod's name in its manifest.
func plain(p *corev1.Pod) string { return strings.TrimSuffix(p.Name, "-node") }

// list returns the pods as the kubelet reports them; none if it does not answer.
func (n *node) list() []corev1.Pod {
	resp, err := http.Get("http://127.0.0.1:10255/pods")
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	var l corev1.PodList
	if json.NewDecoder(resp.Body).Decode(&l) != nil {
		return nil
	}
	return l.Items
}

// pod returns one of them, or nil.
func (n *node) pod(name string) *corev1.Pod {
	all := n.list()
	if i := slices.IndexFunc(all, func(p corev1.Pod) bool { return plain(&p) == name }); i >= 0 {
		return &all[i]
	}
	return nil
}

// facts flattens what a kubelet says of a pod: "phase", "ready", and of each
// container NAME "NAME.state", "NAME.ready", "NAME.restarts", "NAME.id", and
// of how it ended or why it waits "NAME.exit", "NAME.reason", "NAME.message",
// and the same of how it ended before, after "NAME.last.".
func facts(p *corev1.Pod) map[string]string {
	if p == nil {
		return map[string]string{"phase": "unknown to the kubelet"}
	}
	f := map[string]string{"phase": string(p.Status.Phase), "reason": p.Status.Reason, "address": p.Status.PodIP, "ready": "False"}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			f["ready"] = string(c.Status)
		}
	}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		f[s.Name+".ready"] = strconv.FormatBool(s.Ready)
		f[s.Name+".restarts"] = strconv.Itoa(int(s.RestartCount))
		f[s.Name+".id"] = s.ContainerID
		ofState(f, s.Name, s.State)
		ofState(f, s.Name+".last", s.LastTerminationState)
	}
	return f
}

func ofState(f map[string]string, name string, s corev1.ContainerState) {
	switch {
	case s.Running != nil:
		f[name+".state"] = "running"
	case s.Waiting != nil:
		f[name+".state"], f[name+".reason"], f[name+".message"] = "waiting", s.Waiting.Reason, s.Waiting.Message
	case s.Terminated != nil:
		f[name+".state"], f[name+".reason"], f[name+".message"] = "ended", s.Terminated.Reason, s.Terminated.Message
		f[name+".exit"] = strconv.Itoa(int(s.Terminated.ExitCode))
	}
}

// missing compares facts with what is wanted: a text that is equal but for
// space around it, ">N" for a greater number, "~" and a regular expression.
func missing(want, have map[string]string) error {
	var wrong []string
	for _, key := range slices.Sorted(maps.Keys(want)) {
		w, h, good := want[key], have[key], false
		switch {
		case strings.HasPrefix(w, ">"):
			limit, _ := strconv.Atoi(w[1:])
			number, err := strconv.Atoi(h)
			good = err == nil && number > limit
		case strings.HasPrefix(w, "~"):
			good = regexp.MustCompile(w[1:]).MatchString(h)
		default:
			good = strings.TrimSpace(h) == w
		}
		if !good {
			wrong = append(wrong, fmt.Sprintf("%s is %q, want %q", key, h, w))
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("%s", strings.Join(wrong, "; "))
}
