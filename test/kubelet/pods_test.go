package kubelet

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// A podCase is a pod of testdata and what the kubelet must say of it at some time.
type podCase struct {
	name  string
	since int // the first kubelet's minor version that knows what it needs
	want  map[string]string
	check func(*node, *corev1.Pod) error // if that is not all
	extra bool                           // a runtime need not be able to: davit must

	kernel string // the first version of Linux that can, if not each
}

var podCases = []podCase{
	{name: "init", want: map[string]string{
		"phase": "Succeeded", "one.restarts": "1", "two.reason": "Completed", "main.exit": "0",
		"main.message": "one two front init-node init-node hello world",
	}},
	{name: "sidecar", since: 29, want: map[string]string{
		"phase": "Succeeded", "main.message": "sidecar-node", "server.exit": "0", "server.restarts": "0",
	}},
	{name: "probes", want: map[string]string{"ready": "True", "command.restarts": "0", "web.restarts": "0"}},
	{name: "grpc", since: 24, want: map[string]string{"ready": "True", "main.restarts": "0"}},
	{name: "unready", want: map[string]string{"phase": "Running", "ready": "False", "main.state": "running", "main.restarts": "0"}, check: hangs},
	{name: "liveness", want: map[string]string{"ill.restarts": ">0", "ill.last.exit": "0", "slow.restarts": ">0", "slow.last.exit": "137"}},
	{name: "hooks", want: map[string]string{"ready": "True"}},
	{name: "sleep", since: 30, want: map[string]string{"ready": "True"}},
	{name: "crash", want: map[string]string{
		"main.restarts": ">1", "main.reason": "CrashLoopBackOff", "main.last.exit": "3", "main.last.message": "boom",
	}},
	{name: "oom", want: map[string]string{
		"phase": "Failed", "main.exit": "137", "main.reason": "OOMKilled", "limits.message": "67108864 25000 100000",
	}},
	{name: "termination", want: map[string]string{
		"phase": "Failed", "file.message": "from a file", "file.exit": "0", "log.message": "last words", "log.exit": "7",
		"quiet.exit": "0", "quiet.message": "", "signal.exit": "137",
	}},
	{name: "deadline", want: map[string]string{"phase": "Failed", "reason": "DeadlineExceeded", "deaf.exit": "137", "polite.exit": "0"}},
	{name: "hostnetwork", want: map[string]string{"ready": "True", "main.restarts": "0"}, check: onTheNode},
	{name: "hostport", want: map[string]string{"ready": "True"}, check: portsAnswer},
	{name: "hostpath", want: map[string]string{"ready": "True", "main.restarts": "0"}},
	{name: "sharedpid", want: map[string]string{
		"culprit.exit": "0", "culprit.message": "pause", "victim.restarts": ">0", "victim.last.exit": "5",
	}},
	{name: "security", want: map[string]string{
		"phase":          "Succeeded",
		"locked.message": "1000 1001 1001 2000 3000 2000 2000 CapBnd: 0000000000000400 CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 read-only 80",
		// Privileged containers are confined by no filter, whatever the pod says.
		"privileged.message": "Seccomp: 0", "privileged.exit": "0", "named.message": "4711",
	}},
	{name: "nonroot", want: map[string]string{"phase": "Pending", "main.state": "waiting", "main.reason": "CreateContainerConfigError"}},
	{name: "userns", since: 33, extra: true, want: map[string]string{"phase": "Succeeded", "main.message": "0 65536 0 0"}},
	{name: "usernsmemory", since: 33, extra: true, kernel: "6.3", want: map[string]string{"phase": "Succeeded", "main.message": "0"}},
	{name: "imagevolume", since: 35, extra: true, want: map[string]string{"phase": "Succeeded", "main.message": "hello deep read-only"}},
	{name: "names", want: map[string]string{"phase": "Succeeded", "main.message": "other nameserver 192.0.2.53 options ndots:3 search pods.example 192.0.2.7 seven.example"}},
	{name: "terminal", want: map[string]string{"ready": "True"}},
	{name: "rotate", want: map[string]string{"ready": "True"}},
}

// Pods of every kind come to what a kubelet expects of them, can be reached
// through it, survive davitd's death, and go without a trace.
func TestPods(t *testing.T) {
	for _, version := range []string{newest, oldest} {
		t.Run(version, func(t *testing.T) {
			kubeletOf(t, version)
			n := newNode(t, version, newRuntime(t, ""), nil)
			var known []podCase
			for _, c := range podCases {
				if n.minor() >= c.since && kernelIs(t, c.kernel) && (*only == "" || slices.Contains(strings.Split(*only, ","), c.name)) {
					known = append(known, c)
				}
			}
			t.Run("cgroup driver", n.drivenFromCRI)
			for some := range slices.Chunk(known, *batch) {
				n.life(t, some)
			}
			n.runtime.empty(t)
			n.noCgroups(t)
		})
	}
}

// kernelIs reports whether this one is of a version, "6.3", or newer.
func kernelIs(t *testing.T, version string) bool {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var want, have [2]int
	_, _ = fmt.Sscanf(version, "%d.%d", &want[0], &want[1])
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &have[0], &have[1]); err != nil {
		t.Fatal(err)
	}
	return slices.Compare(have[:], want[:]) >= 0
}

// drivenFromCRI: a kubelet that can takes its cgroup driver from the runtime.
func (n *node) drivenFromCRI(t *testing.T) {
	t.Logf("figure: cgroup driver %s", n.runtime.driver)
	if n.minor() < asksForDriver || !n.runtime.tells {
		return
	}
	if want := fmt.Sprintf(`received from the CRI runtime" cgroupDriver=%q`, n.runtime.driver); !strings.Contains(n.log(), want) {
		t.Errorf("the kubelet does not say %s", want)
	}
}

// life puts pods, holds them to what they must come to, does with them what
// can be done with those that run, and takes them away.
func (n *node) life(t *testing.T, cases []podCase) {
	var names []string
	refused := n.refused(t) // while davitd was down, under the pods before these
	began := time.Now()
	for _, c := range cases {
		n.put(n.manifest(c.name))
		names = append(names, c.name)
	}
	n.come(t, cases, began)
	if slices.Contains(names, "terminal") {
		n.session(t)
		t.Run("stats", func(t *testing.T) { n.stats(t, "terminal", false) })
		t.Run("metrics", func(t *testing.T) { n.metrics(t, "terminal") })
	}
	t.Run("calls", func(t *testing.T) {
		failed := slices.DeleteFunc(n.refused(t), func(call string) bool { return slices.Contains(refused, call) })
		if len(failed) > 0 && n.runtime.davit != nil {
			t.Errorf("calls of the CRI that failed: %v", failed)
		} else if len(failed) > 0 {
			t.Logf("figure: calls of the CRI that failed: %v", failed)
		}
	})
	if slices.Contains(names, "hostpath") {
		t.Run("propagation", n.propagation)
	}
	if slices.Contains(names, "rotate") {
		t.Run("rotation", n.rotation)
	}
	if d := n.runtime.davit; d != nil && slices.Contains(names, "probes") {
		t.Run("davitd killed", func(t *testing.T) { n.bounce(t, d.Kill) })
		t.Run("davitd restarted", func(t *testing.T) {
			n.bounce(t, func() {
				if err := d.Stop(); err != nil {
					t.Fatal(err)
				}
			})
			n.works(t, "late")
		})
	}
	t.Run("gone", func(t *testing.T) {
		began := time.Now()
		n.take(names...)
		t.Logf("figure: %d pods gone in %.1f s", len(names), time.Since(began).Seconds())
	})
	if slices.Contains(names, "hooks") {
		t.Run("hooks", n.hooks)
	}
}

// come waits until each pod has been as it must be at some time; a crash loop,
// for one, passes through its states again and again.
func (n *node) come(t *testing.T, cases []podCase, began time.Time) {
	took := map[string]time.Duration{}
	wrong := map[string]error{}
	for deadline := began.Add(times(2 * time.Minute)); len(took) < len(cases) && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		all := n.list()
		for _, c := range cases {
			if took[c.name] != 0 {
				continue
			}
			i := slices.IndexFunc(all, func(p corev1.Pod) bool { return plain(&p) == c.name })
			if i < 0 {
				wrong[c.name] = fmt.Errorf("the kubelet does not know it")
				continue
			}
			err := missing(c.want, facts(&all[i]))
			if err == nil && c.check != nil {
				err = c.check(n, &all[i])
			}
			if wrong[c.name] = err; err == nil {
				took[c.name] = time.Since(began)
			}
		}
	}
	var figures []string
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			switch {
			case took[c.name] != 0:
			case c.extra && n.runtime.davit == nil:
				t.Logf("figure: this runtime does not: %v", wrong[c.name])
			default:
				t.Errorf("%v\n%v", wrong[c.name], facts(n.pod(c.name)))
			}
		})
		figures = append(figures, fmt.Sprintf("%s %.1f", c.name, took[c.name].Seconds()))
	}
	t.Logf("figure: seconds from manifest to what is wanted: %s", strings.Join(figures, ", "))
}

// hangs: the kubelet has counted two probes at least that were cut off.
func hangs(*node, *corev1.Pod) error {
	text, err := ask(port + "/metrics/probes")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, "prober_probe_total{") && strings.Contains(line, `pod="unready-node"`) && strings.Contains(line, `result="failed"`) {
			if count := line[strings.LastIndex(line, " ")+1:]; count != "0" && count != "1" {
				return nil
			}
		}
	}
	return fmt.Errorf("its probe was not counted as failed twice")
}

// onTheNode asks a server in the node's network.
func onTheNode(*node, *corev1.Pod) error {
	_, err := get("http://" + nodeAddress + ":18000/healthz")
	return err
}

// portsAnswer asks by each way that leads to a pod's ports.
func portsAnswer(_ *node, p *corev1.Pod) error {
	for _, url := range []string{"http://" + nodeAddress + ":18080/name", "http://127.0.0.1:18080/name", "http://" + p.Status.PodIP + ":8000/name"} {
		if text, err := get(url); err != nil || strings.TrimSpace(text) != "hostport-node" {
			return fmt.Errorf("%s says %q: %v", url, text, err)
		}
	}
	if err := echoes("127.0.0.1:18081"); err != nil {
		return err
	}
	if echoes(nodeAddress+":18081") == nil {
		return fmt.Errorf("a port of 127.0.0.1 answers on %s too", nodeAddress)
	}
	return nil
}

func get(url string) (string, error) {
	client := http.Client{Timeout: times(2 * time.Second)}
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return string(text), err
}

// propagation mounts something on the node, for a pod that waits for it.
func (n *node) propagation(t *testing.T) {
	later := filepath.Join(n.dir, "hostpath/made/later")
	mountTmpfs(t, later)
	if err := os.WriteFile(filepath.Join(later, "here"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		text, err := os.ReadFile(filepath.Join(n.dir, "hostpath/made/result"))
		if err == nil && strings.TrimSpace(string(text)) != "seen" {
			err = fmt.Errorf("the pod says %q", text)
		}
		return err
	})
	for _, made := range []string{"hostpath/made/part", "hostpath/made/sub/dir/inside"} {
		if _, err := os.Stat(filepath.Join(n.dir, made)); err != nil {
			t.Error(err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(n.dir, "hostpath/file")); err != nil || string(text) != "file\n" {
		t.Errorf("the file on the host has %q: %v", text, err)
	}
}

// hooks looks at what hooks told, once their pods are gone.
func (n *node) hooks(t *testing.T) {
	for file, want := range map[string]string{"command": "started stopping term", "web": "http term"} {
		text, err := os.ReadFile(filepath.Join(n.dir, "hooks", file))
		if got := strings.Join(strings.Fields(string(text)), " "); err != nil || got != want {
			t.Errorf("%s told %q, want %q: %v", file, got, want, err)
		}
	}
}

// noCgroups fails the test if cgroups of pods are left.
func (n *node) noCgroups(t *testing.T) {
	eventually(t, 30*time.Second, func() error {
		for _, pattern := range []string{n.runtime.cgroup + "/kubepods*/pod*", n.runtime.cgroup + "/kubepods*/*/*pod*"} {
			for _, tree := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids"} {
				if left, _ := filepath.Glob(tree + pattern); len(left) > 0 {
					return fmt.Errorf("cgroups of pods are left: %v", left)
				}
			}
		}
		return nil
	})
}
