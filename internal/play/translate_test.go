package play

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var testNode = Node{Name: "node-1", IP: "192.0.2.7", CPUs: 2, MemoryBytes: 8 << 30}

// newLaunch is a pod of which the sandbox runs, with its files below dir.
func newLaunch(t *testing.T, manifest, dir string) *launch {
	t.Helper()
	data, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	pods, err := Read(manifest, data)
	if err != nil {
		t.Fatal(err)
	}
	pod := pods[0]
	pod.UID = "0000-uid"
	l := &launch{
		Player: &Player{Dir: dir + "/play", LogDir: dir + "/logs"}, pod: pod, node: testNode,
		images: map[string]image{}, sandbox: "sandbox", ips: []string{"10.1.2.3", "fd00::3"}, rro: true,
	}
	for c := range eachContainer(&pod.Spec) {
		l.images[c.Image] = image{ref: "sha256:" + c.Image, user: imageUser{name: "app"}}
	}
	for _, v := range pod.Spec.Volumes {
		if v.Image != nil {
			l.images[v.Image.Reference] = image{ref: "sha256:" + v.Image.Reference}
		}
	}
	l.files = filesOf(pod, l.Dir, l.LogDir)
	l.config = sandboxConfig(pod, l.files, &runtimeapi.DNSConfig{
		Servers: []string{"192.0.2.53"}, Searches: []string{"example.org"}, Options: []string{"ndots:2", "edns0"},
	})
	if err := l.makeFiles(t.Context()); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestTranslate has manifests in testdata/pods, with the requests that the
// runtime gets for each.
func TestTranslate(t *testing.T) {
	files, err := filepath.Glob("testdata/pods/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	for _, f := range append(files, "../../examples/hello.yaml") {
		t.Run(filepath.Base(f), func(t *testing.T) {
			dir := t.TempDir()
			l := newLaunch(t, f, dir)
			var out bytes.Buffer
			dump(t, &out, "RunPodSandbox", l.config)
			for c := range eachContainer(&l.pod.Spec) {
				config, err := l.containerConfig(c)
				if err != nil {
					t.Fatal(err)
				}
				dump(t, &out, "CreateContainer", config)
			}
			text := strings.ReplaceAll(out.String(), dir, "DIR")
			golden(t, "testdata/pods/"+strings.TrimSuffix(filepath.Base(f), ".yaml")+".txt", text)
			if err := Clean(l.files.Dir, string(l.pod.UID)); err != nil {
				t.Error(err)
			}
			for _, d := range []string{l.Dir, l.LogDir} {
				if left, _ := os.ReadDir(d); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
			}
		})
	}
}

// dump writes a message as JSON that is the same each time. Variables are
// bytes in the CRI, and shown as text.
func dump(t *testing.T, out *bytes.Buffer, what string, m proto.Message) {
	t.Helper()
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := json.Unmarshal(raw, &tree); err != nil {
		t.Fatal(err)
	}
	if c, ok := m.(*runtimeapi.ContainerConfig); ok {
		var envs []string
		for _, e := range c.Envs {
			envs = append(envs, e.Key+"="+string(e.Value))
		}
		tree["envs"] = envs
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(tree); err != nil {
		t.Fatal(err)
	}
	out.WriteString(what + " " + b.String())
}

func TestExpand(t *testing.T) {
	values := map[string]string{"A": "1", "B": "$(A)", "EMPTY": ""}
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"plain", "plain"},
		{"$(A)", "1"},
		{"x$(A)y$(A)", "x1y1"},
		{"$(B)", "$(A)"}, // what is put in is not expanded again
		{"[$(EMPTY)]", "[]"},
		{"$(NONE)", "$(NONE)"},
		{"$$(A)", "$(A)"},
		{"$$$(A)", "$1"},
		{"$$$$(A)", "$$(A)"},
		{"$", "$"},
		{"$$", "$"},
		{"a$b", "a$b"},
		{"$(A", "$(A"},
		{"$(A$(A)", "$(A$(A)"}, // the name is "A$(A"
		{"$()", "$()"},
		{"$! $? ${A} $A", "$! $? ${A} $A"},
		{"ü$(A)ü", "ü1ü"},
	} {
		if got := expand(c.in, values); got != c.want {
			t.Errorf("expand(%q) = %q, want %q", c.in, got, c.want)
		}
	}
	if got := unresolved("$(A)/$(X)/$$(Y)/$(Z", values); len(got) != 1 || got[0] != "X" {
		t.Errorf("unresolved = %q", got)
	}
}

func resourcePod(t *testing.T, containers string) *corev1.PodSpec {
	t.Helper()
	pods, err := Read("test", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n"+containers))
	if err != nil {
		t.Fatal(err)
	}
	return &pods[0].Spec
}

func TestQoSAndOOMScore(t *testing.T) {
	const gib8 = 8 << 30
	for _, c := range []struct {
		spec  string
		class corev1.PodQOSClass
		score int64 // of the last container
	}{
		{"  containers: [{name: a, image: i}]", corev1.PodQOSBestEffort, 1000},
		{"  containers: [{name: a, image: i, resources: {limits: {cpu: 0}}}]", corev1.PodQOSBestEffort, 1000},
		{"  containers: [{name: a, image: i, resources: {limits: {cpu: 1, memory: 1Gi}}}]", corev1.PodQOSGuaranteed, -997},
		{"  containers: [{name: a, image: i, resources: {limits: {cpu: 1}}}]", corev1.PodQOSBurstable, 999},
		{"  containers: [{name: a, image: i, resources: {limits: {memory: 2Gi}}}]", corev1.PodQOSBurstable, 750},
		{"  containers: [{name: a, image: i, resources: {requests: {memory: 8Gi}}}]", corev1.PodQOSBurstable, 3},
		{"  containers: [{name: a, image: i, resources: {requests: {memory: 1}}}]", corev1.PodQOSBurstable, 999},
		{"  initContainers: [{name: s, image: i}]\n  containers: [{name: a, image: i, resources: {limits: {cpu: 1, memory: 1Gi}}}]", corev1.PodQOSBurstable, 875},
	} {
		s := resourcePod(t, c.spec)
		if got := qosClass(s); got != c.class {
			t.Errorf("%s: class %s, want %s", c.spec, got, c.class)
		}
		if got := oomScore(s, &s.Containers[len(s.Containers)-1], gib8); got != c.score {
			t.Errorf("%s: score %d, want %d", c.spec, got, c.score)
		}
	}
	// A sidecar that asks for little is killed no earlier than what it serves.
	s := resourcePod(t, "  initContainers: [{name: s, image: i, restartPolicy: Always}]\n  containers: [{name: a, image: i, resources: {requests: {memory: 4Gi}}}]")
	if got := oomScore(s, &s.InitContainers[0], gib8); got != 500 {
		t.Errorf("sidecar's score %d, want 500", got)
	}
}

func TestLinuxResources(t *testing.T) {
	for _, c := range []struct {
		resources                    string
		shares, quota, memory, limit int64
	}{
		{"{}", 2, 0, 0, 0},
		{"{requests: {cpu: 1m}}", 2, 0, 0, 0},
		{"{requests: {cpu: 250m}, limits: {cpu: 1}}", 256, 100000, 0, 0},
		{"{limits: {cpu: 500m, memory: 64Mi}}", 512, 50000, 64 << 20, 0},
		{"{limits: {cpu: 1m}}", 2, 1000, 0, 0}, // the kernel's least quota
		{"{requests: {cpu: 1k}}", 262144, 0, 0, 0},
	} {
		s := resourcePod(t, "  containers: [{name: a, image: i, resources: "+c.resources+"}]")
		got := linuxResources(&s.Containers[0].Resources)
		if got.CpuShares != c.shares || got.CpuQuota != c.quota || got.MemoryLimitInBytes != c.memory || got.CpuPeriod != 100000 {
			t.Errorf("%s: %v", c.resources, got)
		}
	}
}

func TestParseResolvConf(t *testing.T) {
	got := parseResolvConf([]byte("# note\ndomain a.example\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch b.example c.example\noptions ndots:5\noptions rotate\nbroken\n"))
	want := &runtimeapi.DNSConfig{
		Servers: []string{"192.0.2.1", "2001:db8::1"}, Searches: []string{"b.example", "c.example"}, Options: []string{"ndots:5", "rotate"},
	}
	if !proto.Equal(got, want) {
		t.Errorf("parseResolvConf = %v, want %v", got, want)
	}
}

func TestNonRoot(t *testing.T) {
	id := func(n int64) *int64 { return &n }
	for _, c := range []struct {
		security string
		image    imageUser
		refused  string
	}{
		{"{}", imageUser{}, ""},
		{"{runAsNonRoot: true}", imageUser{uid: id(7)}, ""},
		{"{runAsNonRoot: true, runAsUser: 7}", imageUser{}, ""},
		{"{runAsNonRoot: true}", imageUser{}, "runs as root"},
		{"{runAsNonRoot: true}", imageUser{uid: id(0)}, "runs as root"},
		{"{runAsNonRoot: true}", imageUser{name: "app"}, `names its user "app"`},
		{"{runAsNonRoot: true, runAsUser: 0}", imageUser{uid: id(7)}, "runAsUser is 0"},
	} {
		pods, err := Read("test", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  securityContext: "+c.security+"\n  containers: [{name: a, image: i}]"))
		if err != nil {
			t.Fatal(err)
		}
		err = checkNonRoot(pods[0], &pods[0].Spec.Containers[0], c.image)
		if (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%s with %+v: %v, want %q", c.security, c.image, err, c.refused)
		}
	}
}
