package kubelet

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/davit-runtime/davit/criclient/cristream"
)

// A member is a node of a cluster that consists of it and an API server.
type member struct {
	*node
	api *server
}

func newMember(t *testing.T, version string) *member {
	t.Helper()
	r := newRuntime(t, "")
	api := newServer(t)
	m := &member{api: api}
	config := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: " + api.url + "}}]\n" +
		"contexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\ncurrent-context: c\n"
	m.node = newNode(t, version, r, map[string]any{
		"nodeStatusUpdateFrequency": "1s", "contentType": "application/json", kubeconfig: config,
	})
	return m
}

// A node of a cluster, old or new, says that it is Ready, stays so when davitd
// is killed, and runs what only an API server can ask for.
func TestMember(t *testing.T) {
	for _, version := range []string{newest, oldest} {
		t.Run(version, func(t *testing.T) {
			kubeletOf(t, version)
			m := newMember(t, version)
			t.Run("ready", m.isReady)
			m.create(t, m.manifest("probes"))
			m.await(t, "probes", map[string]string{"ready": "True"})
			if m.runtime.davit != nil {
				t.Run("davitd killed", m.staysReady)
			}
			if m.minor() >= 33 {
				t.Run("resize", m.resizes)
			}
			if m.minor() >= 25 {
				t.Run("ephemeral container", m.ephemeral)
			}
			t.Run("delete", func(t *testing.T) { m.remove(t, "probes") })
			m.runtime.empty(t)
		})
	}
}

func (m *member) isReady(t *testing.T) {
	eventually(t, time.Minute, func() error {
		var n corev1.Node
		if err := json.Unmarshal(m.api.get("/api/v1/nodes/node"), &n); err != nil {
			return err
		}
		if m.runtime.davit != nil && !strings.HasPrefix(n.Status.NodeInfo.ContainerRuntimeVersion, "davit://") {
			return fmt.Errorf("its runtime is %q", n.Status.NodeInfo.ContainerRuntimeVersion)
		}
		return readiness(&n)
	})
}

// readiness returns why a node is not Ready.
func readiness(n *corev1.Node) error {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return nil
		} else if c.Type == corev1.NodeReady {
			return errors.New(c.Message)
		}
	}
	return errors.New("it does not say whether it is Ready")
}

// staysReady kills davitd five times and looks at all that the node said of
// itself meanwhile.
func (m *member) staysReady(t *testing.T) {
	var before map[string]string
	eventually(t, 10*time.Second, func() error { // on a slow machine, a probe may fail for once
		before = m.lives()
		for key, value := range before {
			if strings.HasSuffix(key, ".ready") && value != "true" {
				return fmt.Errorf("%s is %q", key, value)
			}
		}
		return nil
	})
	mark := m.api.length()
	for range 5 {
		m.runtime.davit.Kill()
		time.Sleep(outage())
		if err := m.runtime.davit.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(times(2 * time.Second))
	}
	m.works(t, "late")
	said := 0
	for _, c := range m.api.since(mark) {
		var n corev1.Node
		if c.collection != "/api/v1/nodes" || json.Unmarshal(c.object, &n) != nil {
			continue
		}
		said++
		if err := readiness(&n); err != nil {
			t.Errorf("the node was not Ready: %v", err)
		}
	}
	if said == 0 {
		t.Error("the node said nothing of itself")
	}
	t.Logf("figure: davitd killed 5 times: %d reports of the node's, all Ready", said)
	if err := same(before, m.lives()); err != nil {
		t.Error(err)
	}
}

// resizes changes what a container may use while it runs.
func (m *member) resizes(t *testing.T) {
	p := m.manifest("resize")
	m.create(t, p)
	m.await(t, p.Name, map[string]string{"ready": "True"})
	for _, size := range []struct{ cpu, memory, seen string }{
		{"200m", "96Mi", "100663296 20000 100000"},
		{"100m", "64Mi", "67108864 10000 100000"},
	} {
		m.change(p.Name, func(p *corev1.Pod) {
			for i := range p.Spec.Containers {
				p.Spec.Containers[i].Resources = sized(size.cpu, size.memory)
			}
			p.Generation++
		})
		eventually(t, time.Minute, func() error {
			p := m.object(p.Name)
			for _, s := range p.Status.ContainerStatuses {
				if s.Resources == nil || s.Resources.Limits.Memory().String() != size.memory || s.Resources.Limits.Cpu().String() != size.cpu {
					return fmt.Errorf("the kubelet says of %s %+v; %+v", s.Name, s.Resources, p.Status.Conditions)
				}
			}
			return nil
		})
		text, err := m.run(p.Name, "live", limits)
		if got := strings.Join(strings.Fields(text), " "); err != nil || got != size.seen {
			t.Errorf("the container sees %q, want %q: %v", got, size.seen, err)
		}
	}
	// Of the other one, the manifest says that it be restarted.
	m.await(t, p.Name, map[string]string{"live.restarts": "0", "restarted.restarts": "2", "ready": "True"})
	m.remove(t, p.Name)
}

const limits = "cd /sys/fs/cgroup; if [ -e cgroup.controllers ]; then cat memory.max cpu.max; else cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us; fi"

func sized(cpu, memory string) corev1.ResourceRequirements {
	list := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	return corev1.ResourceRequirements{Limits: list, Requests: list.DeepCopy()}
}

// ephemeral adds a container for debugging, that sees another's processes.
func (m *member) ephemeral(t *testing.T) {
	m.change("probes", func(p *corev1.Pod) {
		p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{
			TargetContainerName: "command",
			EphemeralContainerCommon: corev1.EphemeralContainerCommon{
				Name: "debugger", Image: m.runtime.images["target"], TerminationMessagePath: "/dev/termination-log",
				Command: []string{"sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline > /dev/termination-log"},
			},
		}}
	})
	eventually(t, 30*time.Second, func() error {
		all := m.object("probes").Status.EphemeralContainerStatuses
		if len(all) != 1 {
			return errors.New("the kubelet does not know it")
		}
		if end := all[0].State.Terminated; end == nil || end.ExitCode != 0 || !strings.HasPrefix(end.Message, "sleep 100000") {
			return fmt.Errorf("it is %+v", all[0].State)
		}
		return nil
	})
}

// create has the API server give the kubelet a pod.
func (m *member) create(t *testing.T, p *corev1.Pod) {
	t.Helper()
	defaults(p)
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	m.api.write(address{prefix: "/api/v1", resource: "pods", namespace: "default"}, http.MethodPost, text)
}

// defaults fills in what an API server does, as far as kubelets insist on it.
func defaults(p *corev1.Pod) {
	links, grace := false, int64(30)
	p.Generation, p.Status.Phase, p.Status.QOSClass = 1, corev1.PodPending, corev1.PodQOSBurstable
	p.Spec.NodeName, p.Spec.DNSPolicy, p.Spec.EnableServiceLinks = "node", corev1.DNSDefault, &links
	p.Spec.SecurityContext = cmp.Or(p.Spec.SecurityContext, &corev1.PodSecurityContext{})
	p.Spec.RestartPolicy = cmp.Or(p.Spec.RestartPolicy, corev1.RestartPolicyAlways)
	p.Spec.TerminationGracePeriodSeconds = cmp.Or(p.Spec.TerminationGracePeriodSeconds, &grace)
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		c.TerminationMessagePath, c.TerminationMessagePolicy, c.ImagePullPolicy = "/dev/termination-log", corev1.TerminationMessageReadFile, corev1.PullIfNotPresent
		for _, probe := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
			if probe == nil {
				continue
			}
			probe.SuccessThreshold, probe.FailureThreshold = 1, 3
			if probe.HTTPGet != nil {
				probe.HTTPGet.Scheme = corev1.URISchemeHTTP
			}
		}
	}
}

func podAddress(name string) address {
	return address{prefix: "/api/v1", resource: "pods", namespace: "default", name: name}
}

// object is a pod as the API server has it.
func (m *member) object(name string) *corev1.Pod {
	p := &corev1.Pod{}
	_ = json.Unmarshal(m.api.get(podAddress(name).key()), p)
	return p
}

// change replaces a pod by a changed one, with the status that it has.
func (m *member) change(name string, f func(*corev1.Pod)) {
	m.api.mu.Lock()
	defer m.api.mu.Unlock()
	text, _ := json.Marshal(m.api.objects[podAddress(name).key()])
	p := &corev1.Pod{}
	_ = json.Unmarshal(text, p)
	f(p)
	text, _ = json.Marshal(p)
	object := map[string]any{}
	_ = json.Unmarshal(text, &object)
	m.api.keep(podAddress(name), object)
}

// await waits until the kubelet has said of a pod what is wanted.
func (m *member) await(t *testing.T, name string, want map[string]string) {
	t.Helper()
	eventually(t, time.Minute, func() error { return missing(want, facts(m.object(name))) })
}

// run runs a command in a container and returns its output.
func (m *member) run(pod, container, script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), times(20*time.Second))
	defer cancel()
	d := cristream.Dialer{TLS: &tls.Config{InsecureSkipVerify: true}}
	query := url.Values{"command": {"sh", "-c", script}, "output": {"1"}}
	var out bytes.Buffer
	err := d.Exec(ctx, cristream.At(port+"/exec/default/"+pod+"/"+container+"?"+query.Encode()), cristream.Streams{Stdout: &out})
	return out.String(), err
}

// remove deletes a pod as users do, and waits for the kubelet's last word.
func (m *member) remove(t *testing.T, name string) {
	t.Helper()
	m.change(name, func(p *corev1.Pod) {
		now := metav1.Now()
		grace := *p.Spec.TerminationGracePeriodSeconds
		p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &now, &grace
	})
	eventually(t, time.Minute, func() error {
		if m.api.get(podAddress(name).key()) != nil {
			return fmt.Errorf("%s is still there", name)
		}
		return nil
	})
}

func (s *server) length() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.history)
}

func (s *server) since(mark int) []change {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.history[mark:]
}
