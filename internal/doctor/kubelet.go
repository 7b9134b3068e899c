package doctor

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/davit-runtime/davit/criclient"
	"github.com/davit-runtime/davit/internal/endpoint"
)

var kubeletChecks = []Check{
	{Name: "kubelet-certificate", What: "the certificate that the kubelet shows to its cluster", run: checkKubeletCertificate, Faults: []Fault{
		{"kubelet-certificate-expired", Error, "the kubelet's client certificate is no longer valid: the node is NotReady"},
		{"kubelet-certificate-expires", Warning, "the kubelet's client certificate should have been renewed by now"},
		{"kubelet-certificate-unusable", Error, "the kubelet's client certificate cannot be read"},
	}},
	{Name: "kubelet-config", What: "that the kubelet's files and flags can be read and are known to it", run: checkKubeletConfig, Faults: []Fault{
		{"kubelet-config-invalid", Error, "the kubelet's configuration or a drop-in is missing, not YAML, or something else"},
		{"kubelet-not-running", Warning, "a kubelet is set up and does not run"},
		{"kubelet-flag-removed", Error, "the kubelet is given a flag that its version no longer has: it does not start"},
	}},
	{Name: "kubelet-endpoint", What: "that the runtime which the kubelet is set to is there", run: checkKubeletEndpoint, Faults: []Fault{
		{"kubelet-endpoint-unset", Error, "the kubelet is told no runtime: it looks for containerd's socket"},
		{"kubelet-endpoint-bad", Error, "the kubelet's endpoint is not of the form unix:///path; a warning where it is an absolute path"},
		{"kubelet-endpoint-dead", Error, "nobody answers where the kubelet looks for its runtime"},
		{"kubelet-image-endpoint-dead", Error, "nobody answers where the kubelet looks for its image service"},
		{"kubelet-endpoint-other", Warning, "davitd runs, but the kubelet uses another runtime"},
	}},
	{Name: "kubelet-metrics", What: "that the kubelet's /metrics/cadvisor has the names of pods", run: checkKubeletMetrics, Faults: []Fault{
		{"kubelet-metrics-nameless", Warning, "the cAdvisor in the kubelet asks containerd's socket whose control groups are, and davitd does not answer there"},
	}},
}

const restartKubelet = " && systemctl restart kubelet"

func checkKubeletConfig(l *look) {
	k := l.kubelet()
	if k == nil {
		l.skip("no kubelet is set up")
		return
	}
	for _, err := range k.Faults {
		if errors.Is(err, fs.ErrPermission) {
			l.unseen("the kubelet's configuration", err)
			continue
		}
		l.fault("kubelet-config-invalid", "# correct that file, then: systemctl restart kubelet; journalctl -eu kubelet says the same\nkubeadm upgrade node phase kubelet-config   # writes it anew", "%v", err)
	}
	v := l.kubeletVersion()
	for _, gone := range []struct {
		flag, field string
		minor       int // of the first version without it
	}{
		{"network-plugin", "networkPlugin", 24}, {"cni-conf-dir", "cniConfDir", 24}, {"cni-bin-dir", "cniBinDir", 24},
		{"container-runtime", "containerRuntime", 27}, {"pod-infra-container-image", "podInfraContainerImage", 35},
	} {
		if set, ok := k.Value(gone.field); ok && v.atLeast(1, gone.minor) && k.Pid == 0 {
			file, _, _ := strings.Cut(set.From, " ")
			l.fault("kubelet-flag-removed", fmt.Sprintf("sed -i -E 's/--%s(=| )[^ \"]*//' %s%s", gone.flag, file, restartKubelet),
				"%s: kubelets have no flag --%s since 1.%d", file, gone.flag, gone.minor)
		}
	}
	text := "flags only"
	if len(k.Files) > 0 {
		text = strings.Join(k.Files, ", ")
	}
	if v.known() {
		text += fmt.Sprintf(", of kubelet %d.%d", v.major, v.minor)
	}
	if _, parallel := k.Value("maxParallelImagePulls"); !parallel && k.Switch("serializeImagePulls", true) {
		text += "; it pulls one image at a time (serializeImagePulls: false and maxParallelImagePulls: 10 pull faster)"
	}
	if k.Pid == 0 && len(l.result.Findings) == 0 { // else that is why
		l.fault("kubelet-not-running", "systemctl enable --now kubelet || journalctl -eu kubelet", "there is no kubelet among the processes (%s)", text)
	}
	l.okay("%s", text)
}

// kubeletCertificate is the one that is in use, below the kubelet's directory.
const kubeletCertificate = "pki/kubelet-client-current.pem"

// A kubelet has its certificate renewed when between 70 % and 90 % of its time
// are over. client-go: certificate_manager.go, nextRotationDeadline.
const renewedBefore = 0.95

func checkKubeletCertificate(l *look) {
	k := l.kubelet()
	if k == nil {
		l.skip("no kubelet is set up")
		return
	}
	file := path.Join(k.Dir, kubeletCertificate)
	data, err := l.read(file)
	if errors.Is(err, fs.ErrNotExist) {
		l.okay("none by which the kubelet joins a cluster")
		return
	}
	if err != nil {
		l.unseen(file, err)
		l.skip("%s: %v", file, plain(err))
		return
	}
	var leaf *x509.Certificate
	for block, rest := pem.Decode(data); block != nil && leaf == nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			leaf, err = x509.ParseCertificate(block.Bytes)
		}
	}
	if leaf == nil || err != nil {
		l.fault("kubelet-certificate-unusable", renewKubelet(k.Dir), "%s has no certificate: %v", file, err)
		return
	}
	now, life := l.Now(), leaf.NotAfter.Sub(leaf.NotBefore)
	until := leaf.NotAfter.Format(time.RFC3339)
	switch {
	case now.After(leaf.NotAfter):
		l.fault("kubelet-certificate-expired", renewKubelet(k.Dir), "%s was valid until %s", file, until)
	case now.Sub(leaf.NotBefore) > time.Duration(float64(life)*renewedBefore):
		l.fault("kubelet-certificate-expires", "kubectl get csr; journalctl -u kubelet | grep -i certificate   # is the request approved? is rotateCertificates true?", "%s is valid until %s, and was not renewed as it should have been", file, until)
	default:
		l.okay("valid until %s", leaf.NotAfter.Format(time.DateOnly))
	}
}

// renewKubelet is how a kubelet gets another certificate when its own is no good.
// kubeadm: troubleshooting, "Kubelet client certificate rotation fails".
func renewKubelet(dir string) string {
	return "# on a node of the control plane: kubeadm kubeconfig user --org system:nodes --client-name system:node:$NODE >kubelet.conf\n" +
		"# then here, with that file as /etc/kubernetes/kubelet.conf:\nmv " + dir + "/pki/kubelet-client* /root/ ; systemctl restart kubelet"
}

func checkKubeletEndpoint(l *look) {
	k := l.kubelet()
	if k == nil {
		l.skip("no kubelet is set up")
		return
	}
	d := l.davit()
	set, ok := k.Endpoint()
	if !ok {
		if l.kubeletVersion().atLeast(1, 27) || !l.kubeletVersion().known() {
			set.Text, set.From = "unix:///run/containerd/containerd.sock", "its default"
		} else {
			l.fault("kubelet-endpoint-unset", l.setEndpoint(d.Socket), "the kubelet has no --container-runtime-endpoint, which it cannot do without before 1.27")
			return
		}
	}
	whole := Endpoint{Address: set.Text}.whole()
	socket := whole.path()
	if _, err := criclient.ParseEndpoint(set.Text); err != nil {
		l.fault("kubelet-endpoint-bad", l.setEndpoint(d.Socket), "%q (%s) is not of the form unix:///run/davit/davit.sock", set.Text, set.From)
		return
	}
	if whole.Address != set.Text {
		l.warn("kubelet-endpoint-bad", l.setEndpoint(socket), "%q (%s) is not of the form unix:///run/davit/davit.sock: kubelets still take it, and call it deprecated", set.Text, set.From)
	}
	err := l.Connect(l.ctx, socket)
	switch {
	case errors.Is(err, fs.ErrPermission):
		l.unseen(socket, err)
	case refused(err):
		l.fault("kubelet-endpoint-dead", l.revive(socket), "%s (%s): %v", set.Text, set.From, reason(err))
	case err == nil && d.running != nil && !sameSocket(socket, d.Socket):
		l.fault("kubelet-endpoint-other", l.setEndpoint(d.Socket), "davitd runs at unix://%s, the kubelet uses %s (%s)", d.Socket, set.Text, set.From)
	default:
		l.okay("%s (%s)", set.Text, set.From)
	}
	images, ok := k.ImageEndpoint()
	if !ok {
		return
	}
	if err := l.Connect(l.ctx, Endpoint{Address: images.Text}.whole().path()); refused(err) {
		l.fault("kubelet-image-endpoint-dead", "# where the runtime serves images as well, which all but few do:\n"+l.setKubelet("imageServiceEndpoint", set.Text),
			"%s (%s): %v", images.Text, images.From, reason(err))
	}
}

// checkKubeletMetrics looks for one of the ways in which names get into a
// kubelet's metrics with davit: docs/install.md, Metrics.
func checkKubeletMetrics(l *look) {
	k, d := l.kubelet(), l.davit()
	if k == nil || k.Pid == 0 {
		l.skip("no kubelet runs")
		return
	}
	set, _ := k.Endpoint()
	if d.running == nil || d.err != nil || !sameSocket(Endpoint{Address: set.Text}.whole().path(), d.Socket) {
		l.skip("the kubelet does not use a davitd that runs")
		return
	}
	asks, flagged := k.Value("containerd")
	switch on, _ := k.Gate("PodAndContainerStatsFromCRI"); {
	case on:
		l.okay("from the CRI")
	case flagged && sameSocket(asks.Text, d.Socket):
		l.okay("by %s", asks.From)
	case d.CadvisorSocket != nil && *d.CadvisorSocket == "":
		l.okay("without names, as davit's cadvisor_socket wants it")
	case d.CadvisorSocket != nil:
		l.okay("by davit's cadvisor_socket")
	default:
		l.fault("kubelet-metrics-nameless", answerCadvisor, "figures of containers have no pod, namespace and container, and there are none of networks, since cadvisor_socket is not set")
	}
}

// answerCadvisor puts the key before all tables.
const answerCadvisor = `# if nobody reads /metrics/cadvisor, cadvisor_socket = "" in /etc/davit/config.toml is enough; else:
{ echo 'cadvisor_socket = "/run/containerd/containerd.sock"'; cat /etc/davit/config.toml; } >/run/davit.toml 2>/dev/null
# not where a containerd runs:
mkdir -p /etc/davit && mv /run/davit.toml /etc/davit/config.toml && systemctl restart davitd` + restartKubelet

// setEndpoint is how to set the kubelet's runtime, where kubeadm wrote it too.
func (l *look) setEndpoint(socket string) string {
	if socket == "" {
		socket = endpoint.Davit
	}
	const flags = "/var/lib/kubelet/kubeadm-flags.env"
	const instance = "/var/lib/kubelet/instance-config.yaml" // what kubeadm puts over config.yaml at upgrades
	fix := l.setKubelet("containerRuntimeEndpoint", "unix://"+socket)
	if l.exists(flags) {
		fix = fmt.Sprintf("sed -i -E 's#--container-runtime-endpoint=[^ \"]*#--container-runtime-endpoint=unix://%s#' %s\n", socket, flags) + fix
	}
	if l.exists(instance) {
		fix = fmt.Sprintf("sed -i 's#^containerRuntimeEndpoint:.*#containerRuntimeEndpoint: unix://%s#' %s\n", socket, instance) + fix
	}
	return fix
}

// setKubelet is how to set one of the kubelet's settings: in the last of its
// files, which wins over the others.
func (l *look) setKubelet(key, value string) string {
	file, fix := "/var/lib/kubelet/config.yaml", ""
	if k := l.kubelet(); k != nil {
		if len(k.Files) > 0 {
			file = k.Files[len(k.Files)-1]
		}
		if set, ok := k.Value(key); ok && strings.Contains(set.From, " --") {
			fix = "# flags win over files: take " + set.From + " out first\n"
		}
	}
	return fix + fmt.Sprintf("sed -i '/^%[1]s:/d' %[3]s && echo '%[1]s: %[2]s' >>%[3]s", key, value, file) + restartKubelet
}

// refused reports whether an error of Connect says that nobody is there, and
// not that there was no time.
func refused(err error) bool {
	return err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) && !errors.Is(err, fs.ErrPermission)
}

// reason says in few words why nobody answers at a socket.
func reason(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "there is no such file"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nobody listens there any more"
	}
	return err.Error()
}

// sameSocket compares paths, for which /var/run is /run.
func sameSocket(a, b string) bool {
	short := func(p string) string { return strings.TrimPrefix(path.Clean(p), "/var") }
	return short(a) == short(b)
}
