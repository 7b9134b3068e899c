package packaging_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/davit-runtime/davit/internal/endpoint"
	"github.com/davit-runtime/davit/internal/kubelet"
	"github.com/davit-runtime/davit/internal/testkit"
)

// blockWith returns the block of code of docs/install.md that has text in it.
func blockWith(t *testing.T, text string) string {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join(top, "docs/install.md"))
	if err != nil {
		t.Fatal(err)
	}
	for i, part := range strings.Split(string(doc), "```") {
		if _, block, _ := strings.Cut(part, "\n"); i%2 == 1 && strings.Contains(block, text) {
			return block
		}
	}
	t.Fatalf("docs/install.md has no block with %q", text)
	return ""
}

// The command by which a node is moved changes every file that names its old
// runtime, as kubeadm has written them over the years.
func TestMovingANode(t *testing.T) {
	block := blockWith(t, "instance-config.yaml")
	command := block[strings.Index(block, "sed -i"):]
	command, _, ok := strings.Cut(command, "\nkubectl")
	if !ok {
		t.Fatalf("%q does not go on with kubectl", command)
	}
	const kind = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
	for _, socket := range []string{"/run/containerd/containerd.sock", "/var/run/containerd/containerd.sock", "/var/run/crio/crio.sock"} {
		root := t.TempDir()
		for name, text := range map[string]string{
			"/var/lib/kubelet/config.yaml":          kind + "containerRuntimeEndpoint: unix://" + socket + "\nstaticPodPath: /etc/kubernetes/manifests\n",
			"/var/lib/kubelet/instance-config.yaml": `containerRuntimeEndpoint: "unix://` + socket + "\"\n",
			"/var/lib/kubelet/kubeadm-flags.env":    `KUBELET_KUBEADM_ARGS="--container-runtime-endpoint=unix://` + socket + ` --pod-infra-container-image=registry.k8s.io/pause:3.9"` + "\n",
			"/etc/crictl.yaml":                      "runtime-endpoint: unix://" + socket + "\nimage-endpoint: unix://" + socket + "\ntimeout: 2\n",
		} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		run(t, nil, "sh", "-c", regexp.MustCompile(`/(var/lib/kubelet|etc)/`).ReplaceAllString(command, root+"$0"))
		const davit = "unix:///run/davit/davit.sock"
		k := kubelet.Find(root)
		if at, ok := k.Endpoint(); !ok || at.Text != davit || !strings.Contains(at.From, "kubeadm-flags.env") {
			t.Errorf("from %s: the kubelet's is %+v", socket, at)
		}
		if c, err := endpoint.ReadCrictl(root, ""); err != nil || c.Runtime.Address != davit || c.Image.Address != davit {
			t.Errorf("from %s: crictl's is %+v: %v", socket, c, err)
		}
		for _, name := range []string{"config.yaml", "instance-config.yaml"} {
			if text, err := os.ReadFile(filepath.Join(root, "var/lib/kubelet", name)); err != nil || !strings.Contains(string(text), davit) || strings.Contains(string(text), socket) {
				t.Errorf("from %s: %s is %q: %v", socket, name, text, err)
			}
		}
	}
}

// What davit is told for k3s is a configuration.
func TestConfigurationForK3s(t *testing.T) {
	testkit.Root(t) // who builds davit's programs for tests
	bin, err := testkit.Binaries()
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(config, []byte(blockWith(t, "rancher")), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := run(t, nil, filepath.Join(bin, "davitd"), "--config", config, "--check"); !strings.Contains(out, "/var/lib/rancher/k3s/agent/etc/cni/net.d") {
		t.Errorf("in force: %s", out)
	}
}
