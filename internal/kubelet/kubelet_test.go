package kubelet

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// node lays out files below a new root. A "->" value is a symbolic link.
func node(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, link := strings.CutPrefix(text, "->"); link {
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func command(args ...string) string { return strings.Join(args, "\x00") + "\x00" }

const kind = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"

func TestFind(t *testing.T) {
	type want struct{ text, from string }
	running := func(args ...string) map[string]string {
		return map[string]string{
			"proc/77/cmdline": command(append([]string{"/usr/bin/kubelet"}, args...)...),
			"proc/77/status":  "Name:\tkubelet\nNSpid:\t77\n",
			"proc/77/exe":     "->/usr/bin/kubelet",
			"proc/1/cmdline":  command("/sbin/init"),
		}
	}
	with := func(files map[string]string, more ...string) map[string]string {
		for i := 0; i < len(more); i += 2 {
			files[more[i]] = more[i+1]
		}
		return files
	}
	tests := map[string]struct {
		files map[string]string
		want  map[string]want // nil: no kubelet
	}{
		"no kubelet": {files: map[string]string{"proc/1/cmdline": command("/sbin/init")}},
		"a kubelet of kind's, in a container": {
			files: with(running(), "proc/77/status", "NSpid:\t77\t12\n"),
		},
		"another one, in a mount namespace of its own": {
			files: with(running("--cgroup-driver=systemd"), "proc/self/ns/mnt", "->mnt:[1]", "proc/77/ns/mnt", "->mnt:[1]",
				"proc/55/cmdline", command("kubelet", "--cgroup-driver=cgroupfs"), "proc/55/ns/mnt", "->mnt:[2]"),
			want: map[string]want{"cgroupDriver": {"systemd", "the running kubelet's flag --cgroup-driver"}},
		},
		"somebody who calls himself kubelet": {
			files: with(running(), "proc/77/status", "Name:\tkubelet\nUid:\t4711\t4711\t4711\t4711\nNSpid:\t77\n"),
		},
		"flags, in both forms": {
			files: running("--container-runtime-endpoint", "unix:///run/a.sock", "--fail_swap_on=false", "-v=2", "--cgroup-driver=systemd"),
			want: map[string]want{
				"containerRuntimeEndpoint": {"unix:///run/a.sock", "the running kubelet's flag --container-runtime-endpoint"},
				"failSwapOn":               {"false", "the running kubelet's flag --fail-swap-on"},
				"cgroupDriver":             {"systemd", "the running kubelet's flag --cgroup-driver"},
				"imageServiceEndpoint":     {},
			},
		},
		"a switch before another flag": {
			files: running("--protect-kernel-defaults", "--resolv-conf=/etc/r"),
			want:  map[string]want{"protectKernelDefaults": {"true", "the running kubelet's flag --protect-kernel-defaults"}, "resolvConf": {"/etc/r", "the running kubelet's flag --resolv-conf"}},
		},
		"a file below flags and drop-ins": {
			files: with(running("--config=/etc/k.yaml", "--config-dir=/etc/k.d", "--cgroup-driver=cgroupfs"),
				"etc/k.yaml", kind+"cgroupDriver: systemd\ncontainerRuntimeEndpoint: unix:///run/a.sock\nmaxPods: 250\nfailSwapOn: false\n",
				"etc/k.d/20-b.conf", kind+"containerRuntimeEndpoint: unix:///run/c.sock\n",
				"etc/k.d/10-a.conf", kind+"containerRuntimeEndpoint: unix:///run/b.sock\nimageServiceEndpoint: unix:///run/i.sock\n",
				"etc/k.d/30.yaml", kind+"maxPods: 1\n"),
			want: map[string]want{
				"cgroupDriver":             {"cgroupfs", "the running kubelet's flag --cgroup-driver"},
				"containerRuntimeEndpoint": {"unix:///run/c.sock", "/etc/k.d/20-b.conf"},
				"imageServiceEndpoint":     {"unix:///run/i.sock", "/etc/k.d/10-a.conf"},
				"maxPods":                  {"250", "/etc/k.yaml"},
				"failSwapOn":               {"false", "/etc/k.yaml"},
			},
		},
		"kubeadm's, not running": {
			files: map[string]string{
				"var/lib/kubelet/kubeadm-flags.env": `KUBELET_KUBEADM_ARGS="--container-runtime-endpoint=unix:///run/a.sock --v=2"` + "\n",
				"var/lib/kubelet/config.yaml":       kind + "cgroupDriver: systemd\n",
			},
			want: map[string]want{
				"containerRuntimeEndpoint": {"unix:///run/a.sock", "/var/lib/kubelet/kubeadm-flags.env --container-runtime-endpoint"},
				"cgroupDriver":             {"systemd", "/var/lib/kubelet/config.yaml"},
			},
		},
		"installed, no more": {files: map[string]string{"etc/default/kubelet": "KUBELET_EXTRA_ARGS=\n"}},
		"k3s": {
			files: map[string]string{"proc/5/cmdline": command("/usr/local/bin/k3s server"), "proc/5/status": "NSpid:\t5\n"},
			want: map[string]want{
				"containerRuntimeEndpoint": {"unix:///run/k3s/containerd/containerd.sock", "k3s's own containerd"},
				"failSwapOn":               {"false", "k3s"},
				"evictionHard":             {"imagefs.available<5%,nodefs.available<5%", "k3s"},
			},
		},
		"k3s with drop-ins": {
			files: map[string]string{
				"proc/5/cmdline": command("/usr/local/bin/k3s server"), "proc/5/status": "NSpid:\t5\n",
				"var/lib/rancher/k3s/agent/etc/kubelet.conf.d/00-k3s-defaults.conf": kind + "cgroupDriver: systemd\nfailSwapOn: false\n",
			},
			want: map[string]want{
				"cgroupDriver": {"systemd", "/var/lib/rancher/k3s/agent/etc/kubelet.conf.d/00-k3s-defaults.conf"},
				"failSwapOn":   {"false", "/var/lib/rancher/k3s/agent/etc/kubelet.conf.d/00-k3s-defaults.conf"},
				"evictionHard": {},
			},
		},
		"k3s on another runtime": {
			files: map[string]string{
				"proc/5/cmdline": command("/usr/local/bin/k3s", "server"), "proc/5/status": "NSpid:\t5\n",
				"etc/systemd/system/k3s.service": "[Service]\nExecStart=/usr/local/bin/k3s \\\n    server \\\n\t'--container-runtime-endpoint' \\\n\t'unix:///run/a.sock' \\\n --kubelet-arg=max-pods=9\n",
			},
			want: map[string]want{
				"containerRuntimeEndpoint": {"unix:///run/a.sock", "/etc/systemd/system/k3s.service --container-runtime-endpoint"},
				"maxPods":                  {"9", "/etc/systemd/system/k3s.service --max-pods"},
			},
		},
		"k3s by its file, without a scheme": {
			files: map[string]string{
				"proc/5/cmdline": command("/usr/local/bin/k3s agent"), "proc/5/status": "NSpid:\t5\n",
				"etc/rancher/k3s/config.yaml": "container-runtime-endpoint: /run/a.sock\nkubelet-arg: [\"max-pods=9\"]\n",
			},
			want: map[string]want{
				"containerRuntimeEndpoint": {"unix:///run/a.sock", "/etc/rancher/k3s/config.yaml"},
				"maxPods":                  {"9", "/etc/rancher/k3s/config.yaml --max-pods"},
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := Find(node(t, test.files))
			if (c == nil) != (test.want == nil) {
				t.Fatalf("Find: %+v", c)
			}
			for field, w := range test.want {
				v, ok := c.Value(field)
				if ok != (w != want{}) || v.Text != w.text || v.From != w.from {
					t.Errorf("%s is %+v, %v; want %+v", field, v, ok, w)
				}
			}
			if c != nil && len(c.Faults) > 0 {
				t.Errorf("faults: %v", c.Faults)
			}
		})
	}
}

func TestFaults(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"no YAML":       {"a: [", "/etc/k.yaml: not YAML: "},
		"another kind":  {"kind: Pod\n", `/etc/k.yaml: kind is "Pod", not KubeletConfiguration`},
		"no such file":  {"", "/etc/k.yaml: no such file or directory"},
		"nothing amiss": {kind, ""},
	} {
		files := map[string]string{"proc/9/cmdline": command("kubelet", "--config", "/etc/k.yaml")}
		if test.text != "" {
			files["etc/k.yaml"] = test.text
		}
		c := Find(node(t, files))
		if c == nil || c.Pid != 9 {
			t.Fatalf("%s: %+v", name, c)
		}
		got := ""
		if len(c.Faults) > 0 {
			got = c.Faults[0].Error()
		}
		if test.want == "" && got != "" || !strings.HasPrefix(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

func TestValues(t *testing.T) {
	c := Find(node(t, map[string]string{
		"proc/9/cmdline": command("kubelet", "--config=/k", "--config-dir=/d", "--root-dir=/data/kubelet", "--feature-gates=A=true,B=false"),
		"k":              kind + "failSwapOn: false\nfeatureGates: {A: false, C: true}\nevictionHard: {nodefs.available: 7%, imagefs.available: 10Gi}\n",
		"d/1.conf":       kind + "featureGates: {D: true}\nevictionHard: {nodefs.inodesFree: 2%}\n",
	}))
	if c.Dir != "/data/kubelet" {
		t.Errorf("Dir is %s", c.Dir)
	}
	if c.Switch("failSwapOn", true) || !c.Switch("protectKernelDefaults", true) || c.Switch("serializeImagePulls", false) {
		t.Error("a switch is wrong")
	}
	for gate, want := range map[string][2]bool{"A": {true, true}, "B": {false, true}, "C": {true, true}, "D": {true, true}, "E": {}} {
		if on, set := c.Gate(gate); on != want[0] || set != want[1] {
			t.Errorf("gate %s: %v, %v", gate, on, set)
		}
	}
	for key, want := range map[string]float64{"nodefs.available": 7, "imagefs.available": 15, "nodefs.inodesFree": 2, "memory.available": 1} {
		def := 1.0
		if key == "imagefs.available" {
			def = 15
		}
		if got := c.Percent("evictionHard", key, def); got != want {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
}
