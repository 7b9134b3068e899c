package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/davit-runtime/davit/criclient"
	"github.com/davit-runtime/davit/internal/endpoint"
)

var socketChecks = []Check{
	{Name: "socket", What: "the runtime's socket: that it is there, served, and for root only", run: checkSocket, Faults: []Fault{
		{"socket-missing", Error, "there is no socket: the runtime does not run, or serves another one"},
		{"socket-stale", Error, "the socket's file is there, but nobody listens: the runtime died"},
		{"socket-not-a-socket", Error, "a file or folder stands where the socket should be"},
		{"endpoint-bad", Error, "what the user or crictl's configuration names is not of the form unix:///path"},
		{"image-socket-dead", Error, "images were said to be at a socket of their own, where nobody answers"},
		{"socket-open-to-all", Error, "every user may connect to the socket, and so become root"},
	}},
	{Name: "cri", What: "what the runtime answers, and in which versions of the CRI", run: checkCRI, Faults: []Fault{
		{"cri-hangs", Error, "the runtime accepts, and then does not answer within three seconds"},
		{"cri-off", Error, "the program at the socket serves no CRI, as containerd with disabled_plugins = [\"cri\"]"},
		{"cri-v1-missing", Error, "the runtime serves v1alpha2 only, and kubelets since 1.26 speak v1"},
		{"cri-v1alpha2-missing", Error, "the runtime serves v1 only, and kubelets before 1.23 speak v1alpha2"},
		{"cri-images-missing", Error, "no images are served where the runtime is, or at the image service's own socket if there is one"},
		{"cri-broken", Error, "the runtime answers with an error where the kubelet starts by asking"},
	}},
	{Name: "other-sockets", What: "other runtimes' sockets, and where crictl is pointed", run: checkOtherSockets, Faults: []Fault{
		{"several-runtimes", Warning, "several runtimes serve the usual sockets and nothing says which is meant: kubeadm takes another, or refuses"},
		{"crictl-endpoint-dead", Warning, "/etc/crictl.yaml points to a socket where nobody answers"},
		{"crictl-config-invalid", Warning, "/etc/crictl.yaml cannot be read or is not what it should be; without a flag, crictl and davit refuse it"},
	}},
	{Name: "runtime-status", What: "the conditions of the runtime's Status", run: checkStatus, Faults: []Fault{
		{"runtime-not-ready", Error, "RuntimeReady is false: the runtime cannot run pods"},
		{"network-not-ready", Error, "NetworkReady is false: pods get no network, and the node is NotReady"},
		{"runtime-warns", Warning, "another condition is false, such as containerd's notice of deprecated settings"},
	}},
}

// namedEndpoint returns the runtime that somebody has named for this node: the
// user now, by an address or by a file of crictl's, or the kubelet, since it is
// the node that is looked at. Zero: nobody has.
func (f *facts) namedEndpoint() Endpoint {
	if f.Given.Runtime.Address != "" {
		return f.Given.Runtime.whole()
	}
	if f.Given.Crictl != "" {
		if c, _ := f.crictl(); c.Runtime.Address != "" {
			return Endpoint(c.Runtime).whole()
		}
	}
	if k := f.kubelet(); k != nil {
		set, _ := k.Endpoint()
		return Endpoint{set.Text, set.From}.whole()
	}
	return Endpoint{}
}

// chooseEndpoint returns whose runtime is looked at: the one that was named, or
// davitd's if it runs, or crictl's, or the first at a usual socket, or davit's.
func (f *facts) chooseEndpoint() Endpoint {
	if e := f.namedEndpoint(); e.Address != "" {
		return e
	}
	if d := f.davit(); d.running != nil {
		return Endpoint{"unix://" + d.Socket, "the davitd that runs"}
	}
	if c, _ := f.crictl(); c.Runtime.Address != "" {
		return Endpoint(c.Runtime).whole()
	}
	for _, s := range endpoint.Sockets() {
		if err := f.Connect(f.ctx, s.Path); err == nil || errors.Is(err, fs.ErrPermission) {
			return Endpoint(s.Setting())
		}
	}
	return Endpoint{"unix://" + f.davit().Socket, "davit's usual socket"}
}

// chooseImages returns where images are: where the user says, else where the
// one says who named the runtime, else with the runtime.
func (f *facts) chooseImages() Endpoint {
	if f.Given.Images.Address != "" {
		return f.Given.Images.whole()
	}
	runtime := f.endpoint()
	if k := f.kubelet(); k != nil {
		images, ok := k.ImageEndpoint()
		if set, _ := k.Endpoint(); ok && sameSocket(Endpoint{Address: set.Text}.whole().path(), runtime.path()) {
			return Endpoint{images.Text, images.From}.whole()
		}
	}
	if c, _ := f.crictl(); c.Image.Address != "" && sameSocket(Endpoint(c.Runtime).whole().path(), runtime.path()) {
		return Endpoint(c.Image).whole()
	}
	return runtime
}

// whole returns e with the scheme that may be left out, or be unix:/path.
func (e Endpoint) whole() Endpoint {
	if rest, ok := strings.CutPrefix(e.Address, "unix:/"); ok && !strings.HasPrefix(rest, "/") {
		e.Address = "/" + rest
	}
	if path.IsAbs(e.Address) {
		e.Address = "unix://" + e.Address
	}
	return e
}

// revive is how to get a runtime to serve a socket.
func (l *look) revive(socket string) string {
	unit := "davitd"
	for _, s := range endpoint.Sockets() {
		if sameSocket(s.Path, socket) {
			unit = s.Unit
		}
	}
	if unit == "davitd" && len(l.glob("/*/systemd/system/davitd.service"))+len(l.glob("/usr/lib/systemd/system/davitd.service")) == 0 {
		return "davitd --socket " + socket + " &   # and see what it says"
	}
	return fmt.Sprintf("systemctl enable --now %s || journalctl -eu %s", unit, unit)
}

func checkSocket(l *look) {
	e := l.endpoint()
	socket := e.path()
	if _, err := criclient.ParseEndpoint(e.Address); err != nil {
		if k := l.kubelet(); k != nil {
			if set, _ := k.Endpoint(); set.From == e.From {
				l.skip("%s: %v", e.From, err) // as check kubelet-endpoint says
				return
			}
		}
		l.fault("endpoint-bad", "davit doctor --endpoint unix://"+l.davit().Socket, "%s: %v", e.From, err)
		return
	}
	l.checkImageSocket()
	if d := l.davit(); d.here() && d.running == nil && sameSocket(socket, d.Socket) {
		l.skip("davitd does not run")
		return
	}
	info, err := os.Stat(l.at(socket))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		l.fault("socket-missing", l.revive(socket), "%s (%s): there is no such file", e.Address, e.From)
		return
	case err != nil:
		l.skip("%s: %v", socket, plain(err))
		return
	case info.Mode().Type() != fs.ModeSocket:
		l.fault("socket-not-a-socket", fmt.Sprintf("mv %s %s.aside && %s", socket, socket, l.revive(socket)), "%s (%s) is not a socket", socket, e.From)
		return
	}
	if info.Mode().Perm()&0o002 != 0 {
		l.fault("socket-open-to-all", fmt.Sprintf("chmod 0660 %s", socket), "%s may be used by everybody (%v): who can run a container is root", socket, info.Mode().Perm())
	}
	err = l.Connect(l.ctx, socket)
	switch {
	case errors.Is(err, fs.ErrPermission):
		l.unseen(socket, err)
	case refused(err):
		l.fault("socket-stale", l.revive(socket), "%s (%s): %s", e.Address, e.From, reason(err))
	}
	l.okay("%s (%s)", e.Address, e.From)
}

// checkImageSocket looks at the image service's own socket, if it has one that
// is not the kubelet's: of that, check kubelet-endpoint tells.
func (l *look) checkImageSocket() {
	e := l.images()
	if k := l.kubelet(); k != nil {
		if set, ok := k.ImageEndpoint(); ok && set.From == e.From {
			return
		}
	}
	_, err := criclient.ParseEndpoint(e.Address)
	if err == nil && e.Address != l.endpoint().Address {
		err = l.Connect(l.ctx, e.path())
		if errors.Is(err, fs.ErrPermission) {
			l.unseen(e.path(), err)
		} else if refused(err) {
			l.fault("image-socket-dead", "davit doctor --image-endpoint "+l.endpoint().Address+"   # or start what serves images there", "%s (%s): %s", e.Address, e.From, reason(err))
		}
		return
	}
	if err != nil && e.From != l.endpoint().From {
		l.fault("endpoint-bad", "davit doctor --image-endpoint "+l.endpoint().Address, "%s: %v", e.From, err)
	}
}

func checkCRI(l *look) {
	a := l.answer()
	e := l.endpoint()
	switch {
	case errors.Is(a.Err, context.DeadlineExceeded):
		l.fault("cri-hangs", hangsFix(a.Name), "%s accepted and did not answer within %v", e.Address, askLimit)
		return
	case a.Err != nil:
		l.skip("%s", a.silence())
		return
	case len(a.APIs) == 0:
		name := path.Base(e.path())
		fix := "# name the runtime's own socket, as unix:///run/davit/davit.sock"
		if strings.Contains(name, "containerd") {
			fix = "sed -i '/^disabled_plugins/d' /etc/containerd/config.toml && systemctl restart containerd"
		}
		if !notThere(a) {
			l.fault("cri-broken", hangsFix(a.Name), "%s answers %s", e.Address, refusals(a))
			return
		}
		l.fault("cri-off", fix, "%s serves no version of the CRI: %s", e.Address, refusals(a))
		return
	}
	if !slices.Contains(a.APIs, "v1") && (!l.kubeletVersion().known() || l.kubeletVersion().atLeast(1, 26)) {
		l.fault("cri-v1-missing", "apt-get install --only-upgrade containerd   # containerd 1.6, CRI-O 1.20 and davit serve v1; in davit's configuration: cri_versions",
			"%s %s serves only %s", a.Name, a.Version, strings.Join(a.APIs, ", "))
	}
	if v := l.kubeletVersion(); v.known() && !v.atLeast(1, 23) && !slices.Contains(a.APIs, "v1alpha2") {
		l.fault("cri-v1alpha2-missing", "sed -i '/^cri_versions/d' /etc/davit/config.toml && systemctl restart davitd   # other runtimes: containerd before 2.0, CRI-O before 1.26",
			"kubelet 1.%d speaks v1alpha2, %s %s serves %s", v.minor, a.Name, a.Version, strings.Join(a.APIs, ", "))
	}
	if a.ImageErr != nil && !errors.As(a.ImageErr, new(*criclient.EndpointError)) { // of a dead socket, other checks tell
		l.fault("cri-images-missing", l.setKubelet("imageServiceEndpoint", "unix:///path/of/its.sock")+"   # if images are served elsewhere; else restart the runtime",
			"%s %s: images at %s: %v", a.Name, a.Version, l.images().Address, a.ImageErr)
	}
	l.okay("%s %s serves %s", a.Name, a.Version, strings.Join(a.APIs, " and "))
}

// silence says why nothing is known of the runtime.
func (a Answer) silence() string {
	if errors.Is(a.Err, fs.ErrPermission) {
		return "the socket is for root"
	}
	return "the runtime does not answer"
}

// notThere reports whether all that the program said is that it has no such service.
func notThere(a Answer) bool {
	for _, answer := range a.Refused {
		if !strings.Contains(answer, "Unimplemented") && !strings.Contains(answer, "unknown service") {
			return false
		}
	}
	return true
}

func refusals(a Answer) string {
	var all []string
	for version, answer := range a.Refused {
		all = append(all, version+": "+answer)
	}
	slices.Sort(all)
	return strings.Join(all, "; ")
}

// hangsFix is what to do about a runtime that runs and does not answer.
func hangsFix(runtime string) string {
	switch runtime {
	case "containerd", "cri-o":
		unit := strings.ReplaceAll(runtime, "-", "")
		return "journalctl -eu " + unit + "; systemctl restart " + unit
	}
	return "kill -USR1 $(pidof davitd); journalctl -eu davitd   # its goroutines; then: systemctl restart davitd (containers run on)"
}

func checkOtherSockets(l *look) {
	chosen := l.endpoint()
	var serving []string
	for _, s := range endpoint.Sockets() {
		if err := l.Connect(l.ctx, s.Path); err == nil || errors.Is(err, fs.ErrPermission) {
			serving = append(serving, s.Path)
		}
	}
	k := l.kubelet()
	said := false
	if k != nil {
		_, said = k.Endpoint()
	}
	if len(serving) > 1 && !said {
		l.fault("several-runtimes", fmt.Sprintf("# in the configuration given to kubeadm, below nodeRegistration (InitConfiguration or JoinConfiguration):\nnodeRegistration:\n  criSocket: %s", chosen.Address),
			"%s are all served, and no kubelet is set to one of them", strings.Join(serving, ", "))
	}
	l.checkCrictl(chosen)
	switch len(serving) {
	case 0:
		l.okay("no runtime at a usual socket")
	default:
		l.okay("served: %s", strings.Join(serving, ", "))
	}
}

// checkCrictl looks at where crictl, and davit without a flag, are pointed.
func (l *look) checkCrictl(chosen Endpoint) {
	c, err := l.crictl()
	switch {
	case errors.Is(err, fs.ErrPermission):
		l.unseen(c.File, err)
	case errors.Is(err, fs.ErrNotExist):
		l.fault("crictl-config-invalid", "unset "+endpoint.CrictlEnv, "%v", err)
	case err != nil:
		l.fault("crictl-config-invalid", fmt.Sprintf("mv %[1]s %[1]s.aside && echo 'runtime-endpoint: %[2]s' >%[1]s", c.File, chosen.Address), "%v", err)
	}
	for _, set := range []struct {
		key        string
		is, chosen Endpoint
	}{{"runtime-endpoint", Endpoint(c.Runtime), chosen}, {"image-endpoint", Endpoint(c.Image), l.images()}} {
		if set.is.Address == "" || set.is.From == set.chosen.From { // of what was chosen, check socket tells
			continue
		}
		if err := l.Connect(l.ctx, set.is.whole().path()); refused(err) {
			l.fault("crictl-endpoint-dead", fmt.Sprintf("sed -i 's#^%s:.*#%s: %s#' %s", set.key, set.key, set.chosen.Address, c.File), "%s: %s: %s", set.is.From, set.is.path(), reason(err))
		}
	}
}

func checkStatus(l *look) {
	a := l.answer()
	if a.Err != nil || len(a.APIs) == 0 {
		l.skip("%s", a.silence())
		return
	}
	var ready []string
	for _, c := range a.Conditions {
		switch {
		case c.True:
			ready = append(ready, c.Type)
		case c.Type == "RuntimeReady":
			l.fault("runtime-not-ready", statusFix(a.Name), "%s: %s", a.Name, c.Message)
		case c.Type == "NetworkReady":
			l.fault("network-not-ready", networkFix, "%s: %s", a.Name, c.Message)
		default:
			l.fault("runtime-warns", "davit status -o json   # the whole of it; what to change is named there", "%s: %s: %s", a.Name, c.Type, c.Message)
		}
	}
	l.okay("%s", strings.Join(ready, ", "))
}

func statusFix(runtime string) string {
	if runtime == "davit" {
		return "davit doctor; journalctl -eu davitd   # the other findings, and davitd's log, say why"
	}
	return hangsFix(runtime)
}

const networkFix = `ls -l /etc/cni/net.d; kubectl -n kube-system get pods -o wide --field-selector spec.nodeName=$(hostname)   # is the network add-on's pod running here?
# without an add-on, davit has a network of its own, once no file is in /etc/cni/net.d`
