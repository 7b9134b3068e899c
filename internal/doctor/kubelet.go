package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/davit-runtime/davit/internal/endpoint"
)

var kubeletChecks = []Check{
	{Name: "kubelet-config", What: "that the kubelet's files and flags can be read and are known to it", run: checkKubeletConfig, Faults: []Fault{
		{"kubelet-config-invalid", Error, "the kubelet's configuration or a drop-in is missing, not YAML, or something else"},
		{"kubelet-flag-removed", Error, "the kubelet is given a flag that its version no longer has: it does not start"},
	}},
	{Name: "kubelet-endpoint", What: "that the runtime which the kubelet is set to is there", run: checkKubeletEndpoint, Faults: []Fault{
		{"kubelet-endpoint-unset", Error, "the kubelet is told no runtime: it looks for containerd's socket"},
		{"kubelet-endpoint-bad", Error, "the kubelet's endpoint is not of the form unix:///path"},
		{"kubelet-endpoint-dead", Error, "nobody answers where the kubelet looks for its runtime"},
		{"kubelet-image-endpoint-dead", Error, "nobody answers where the kubelet looks for its image service"},
		{"kubelet-endpoint-other", Warning, "davitd runs, but the kubelet uses another runtime"},
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
	if k.Pid == 0 {
		text += "; it is not running"
	}
	l.okay("%s", text)
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
	socket, isUnix := strings.CutPrefix(set.Text, "unix://")
	if !isUnix || !path.IsAbs(socket) {
		l.fault("kubelet-endpoint-bad", l.setEndpoint(strings.TrimPrefix(socket, "unix:")), "%q (%s) is not of the form unix:///run/davit/davit.sock", set.Text, set.From)
		return
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
	if err := l.Connect(l.ctx, strings.TrimPrefix(images.Text, "unix://")); refused(err) {
		l.fault("kubelet-image-endpoint-dead", "# where the runtime serves images as well, which all but few do:\n"+l.setKubelet("imageServiceEndpoint", set.Text),
			"%s (%s): %v", images.Text, images.From, reason(err))
	}
}

// setEndpoint is how to set the kubelet's runtime, where kubeadm wrote it too.
func (l *look) setEndpoint(socket string) string {
	if socket == "" {
		socket = endpoint.Davit
	}
	const flags = "/var/lib/kubelet/kubeadm-flags.env"
	fix := l.setKubelet("containerRuntimeEndpoint", "unix://"+socket)
	if l.exists(flags) {
		fix = fmt.Sprintf("sed -i -E 's#--container-runtime-endpoint=[^ \"]*#--container-runtime-endpoint=unix://%s#' %s\n", socket, flags) + fix
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
