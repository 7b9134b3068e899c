package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/criclient"
	"github.com/davit-runtime/davit/criclient/crifake"
)

// shell runs davit against a fake runtime.
type shell struct {
	*testing.T
	cri    *crifake.Runtime
	socket *crifake.Socket
	dir    string // --play-dir and --log-dir are below it
	out    string // of the last command
	errOut string

	program program // what is run in containers
	port    string  // address of what listens on port 80 of pods
}

func newShell(t *testing.T) *shell {
	dir, err := os.MkdirTemp("", "cri") // short: socket paths have 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	s := &shell{T: t, cri: crifake.New(), dir: t.TempDir()}
	if s.socket, err = s.cri.Listen(filepath.Join(dir, "cri.sock"), crifake.V1()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.socket.Close(); os.RemoveAll(dir) })
	s.serveStreams()
	return s
}

// davit runs a command; input is for play -.
func (s *shell) davit(wantCode int, input string, args ...string) {
	s.Helper()
	var out, errOut bytes.Buffer
	code := run(append([]string{"--endpoint", s.socket.Path()}, args...), strings.NewReader(input), &out, &errOut)
	s.out, s.errOut = out.String(), errOut.String()
	if code != wantCode {
		s.Fatalf("davit %q: exit code %d, want %d\n%s%s", args, code, wantCode, s.out, s.errOut)
	}
}

func (s *shell) play(wantCode int, manifest string, flags ...string) {
	s.Helper()
	s.davit(wantCode, manifest, append([]string{"play", "-", "--play-dir", s.playDir(), "--log-dir", s.logDir()}, flags...)...)
}

func (s *shell) playDir() string { return filepath.Join(s.dir, "play") }
func (s *shell) logDir() string  { return filepath.Join(s.dir, "logs") }

// has requires text, a regular expression, in got.
func (s *shell) has(got, text string) {
	s.Helper()
	if !regexp.MustCompile(text).MatchString(got) {
		s.Errorf("no %q in:\n%s", text, got)
	}
}

// clean requires that no file and no pod is left.
func (s *shell) clean() {
	s.Helper()
	for _, dir := range []string{s.playDir(), s.logDir()} {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			s.Errorf("left in %s: %v", dir, left)
		}
	}
	if pods, containers := s.cri.Pods(), s.cri.Containers(); len(pods)+len(containers) > 0 {
		s.Errorf("left: %v, %v", pods, containers)
	}
}

const twoContainers = `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec:
  terminationGracePeriodSeconds: 7
  volumes: [{name: data, emptyDir: {}}]
  initContainers:
    - {name: setup, image: "reg/a:1", command: [exit, "0"]}
    - {name: first, image: "reg/a:1", restartPolicy: Always}
    - {name: second, image: "reg/a:1", restartPolicy: Always}
  containers:
    - {name: server, image: "reg/a:1", volumeMounts: [{name: data, mountPath: /data, subPath: a/b}]}
    - {name: helper, image: "reg/b", ports: [{containerPort: 80, hostPort: 8080}]}
`

func TestLifeOfAPod(t *testing.T) {
	s := newShell(t)
	s.play(0, twoContainers)
	s.has(s.out, `(?s)pod shop/web\n  image .*reg/a:1  pulled, 1.27 MiB.*image .*reg/b .*sandbox .*address .*10.1.2.3  :8080 -> 80/TCP.*`+
		`init .*setup  exit code 0.*sidecar .*first  started.*sidecar .*second.*container .*server.*container .*helper.*pod shop/web is up`)

	s.davit(0, "", "pods")
	s.has(s.out, `(?m)^ID +NAMESPACE +NAME +STATE +ADDRESS +AGE +HANDLER\naa0{10} +shop +web +ready +10.1.2.3 +0s +-\n$`)
	s.davit(0, "", "pods", "-o", "json")
	s.has(s.out, `"state": "SANDBOX_READY"`)
	s.davit(0, "", "ps")
	s.has(s.out, `cc0{9}3 +shop/web +server +running +0 +0s +reg/a:1`)
	if strings.Contains(s.out, "setup") {
		t.Errorf("ps shows a container that has ended:\n%s", s.out)
	}
	s.davit(0, "", "ps", "-a")
	s.has(s.out, `setup +exited`)

	s.davit(0, "", "logs", "web", "-c", "server")
	if s.out != "server runs\n" {
		t.Errorf("logs = %q", s.out)
	}
	s.davit(0, "", "logs", "web")
	s.has(s.out, `(?m)^helper \| helper runs$`)
	s.davit(0, "", "logs", "cc0000000000", "--timestamps", "-f")
	s.has(s.out, `^2026-01-02T03:04:05.000000006Z setup runs\n$`)
	s.has(s.errOut, `^2026-01-02T03:04:06Z it ends\n$`)

	s.davit(1, "", "exec", "web", "--", "ls")
	s.has(s.errOut, `^davit: pod "web" has several containers; choose one by -c: first, second, server, helper\n$`)
	s.davit(0, "", "exec", "shop/web", "-c", "helper", "--", "ls", "-l")
	if s.out != "helper: [\"ls\" \"-l\"]\n" || s.errOut != "err\n" {
		t.Errorf("exec = %q, %q", s.out, s.errOut)
	}
	s.davit(42, "", "exec", "aa", "-c", "server", "--", "exit", "42")
	s.cri.Fail("ExecSync", status.Error(codes.DeadlineExceeded, "over"))
	s.davit(1, "", "exec", "web", "-c", "server", "--timeout", "3s", "--", "sleep", "9")
	s.has(s.errOut, `^davit: exec in container server: the time limit of 3s is over\n$`)

	s.cri.SetInfo(map[string]string{"held": `["netns","network"]`, "note": "plain"})
	s.davit(0, "", "inspect", "web")
	var seen struct {
		Status struct{ ID string }
		Info   struct {
			Held []string
			Note string
		}
	}
	if err := json.Unmarshal([]byte(s.out), &seen); err != nil || len(seen.Info.Held) != 2 || seen.Info.Note != "plain" || seen.Status.ID == "" {
		t.Errorf("inspect = %+v, %v", seen, err)
	}
	s.davit(0, "", "inspect", "web", "-c", "server")
	s.has(s.out, `"name": "server"`)

	s.davit(1, "", "rm", "web")
	s.has(s.errOut, `^davit: pod shop/web runs; stop it first \(davit stop shop/web\), or use -f to kill it\n$`)
	names := map[string]string{}
	for _, c := range s.cri.Containers() {
		names[c.Id] = c.Metadata.Name
	}
	s.davit(0, "", "stop", "web")
	var stops []string
	for _, c := range s.cri.Calls("StopContainer") {
		q := c.Request.(*runtimeapi.StopContainerRequest)
		stops = append(stops, fmt.Sprintf("%s %d", names[q.ContainerId], q.Timeout))
	}
	slices.Sort(stops[:2]) // these two at once
	want := []string{"helper 7", "server 7", "second 7", "first 7"}
	if !slices.Equal(stops, want) {
		t.Errorf("stop did %q, want %q", stops, want)
	}
	s.davit(0, "", "rm", "web")
	s.clean()
	s.davit(1, "", "rm", "web")
	s.has(s.errOut, `^davit: there is no pod "web"; see davit pods\n$`)
	s.davit(0, "", "rm", "-f", "web")
}

func TestPlayFailuresLeaveNothing(t *testing.T) {
	const head = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n"
	for _, c := range []struct {
		name, manifest, says string
		fail                 string
	}{
		{"init container", head + `  initContainers: [{name: setup, image: "a:1", command: [exit, "3"]}]` + "\n" + `  containers: [{name: c, image: "a:1"}]`,
			`(?s)last lines of container setup:\n  \| setup runs\n  \| it ends\ndavit: init container setup of pod default/web exited with code 3 \(Error\)\n`, ""},
		{"container", head + `  containers: [{name: c, image: "a:1", command: [exit, "1"]}]`,
			`davit: container c of pod default/web exited with code 1`, ""},
		{"pull", head + `  containers: [{name: c, image: "a:1"}]`,
			`davit: image a:1 of container c: no such luck\n`, "PullImage"},
		{"never pulled", head + `  containers: [{name: c, image: "a:1", imagePullPolicy: Never}]`,
			`image a:1 of container c: is not present, and the policy is Never; pull it first: davit pull a:1\n`, ""},
		{"root", head + `  containers: [{name: c, image: "a:1", securityContext: {runAsNonRoot: true}}]`,
			`container c: runAsNonRoot is set, but image a:1 runs as root; set runAsUser\n`, ""},
		{"sandbox", head + `  containers: [{name: c, image: "a:1"}]`,
			`davit: sandbox of pod default/web: no such luck\n`, "RunPodSandbox"},
		{"create", head + `  containers: [{name: c, image: "a:1"}]`,
			`davit: container c of pod default/web was not created: no such luck\n`, "CreateContainer"},
		{"start", head + `  containers: [{name: c, image: "a:1"}]`,
			`davit: container c of pod default/web did not start: no such luck\n`, "StartContainer"},
		{"volume", head + `  volumes: [{name: v, hostPath: {path: /proc/no/such/path, type: Directory}}]` + "\n" + `  containers: [{name: c, image: "a:1"}]`,
			`davit: files of pod default/web: volume v: /proc/no/such/path does not exist; its type is Directory\n`, ""},
		{"second pod", head + `  containers: [{name: c, image: "a:1"}]` + "\n---\n" + head + `  containers: [{name: c, image: "a:1"}]`,
			`^standard input:9: metadata.name: default/web is the name of two Pods\n$`, ""},
		{"absent image volume", head + "  volumes: [{name: v, image: {reference: 'b:1', pullPolicy: Never}}]\n" + `  containers: [{name: c, image: "a:1", volumeMounts: [{name: v, mountPath: /v}]}]`,
			`davit: image b:1 of volume v: is not present, and the policy is Never; pull it first: davit pull b:1\n`, ""},
		{"manifest", head + "  bogus: 1", `^standard input:5: spec.bogus: no such field in a Pod\n$`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newShell(t)
			if c.fail != "" {
				s.cri.Fail(c.fail, status.Error(codes.Internal, "no such luck"))
			}
			s.play(1, c.manifest)
			s.has(s.errOut, c.says)
			s.clean()
		})
	}
}

// TestInterrupt sends this process the signal of Ctrl-C while an init
// container runs that never ends.
func TestInterrupt(t *testing.T) {
	s := newShell(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for len(s.cri.Calls("ContainerStatus")) == 0 {
			time.Sleep(5 * time.Millisecond)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			t.Error(err)
		}
	}()
	s.play(exitInterrupted, "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n"+
		"  initContainers: [{name: setup, image: a}]\n  containers: [{name: c, image: a}]")
	<-done
	if s.errOut != "davit: interrupted\n" {
		t.Errorf("said %q", s.errOut)
	}
	s.clean()
}

// keyboard is a terminal at which nobody types anything but Ctrl-C.
type keyboard struct{ quiet chan struct{} }

func (k keyboard) Read([]byte) (int, error) {
	_ = syscall.Kill(os.Getpid(), syscall.SIGINT)
	<-k.quiet
	return 0, io.EOF
}

func TestInterruptedWhileReading(t *testing.T) {
	s := newShell(t)
	k := keyboard{make(chan struct{})}
	defer close(k.quiet)
	var out, errOut bytes.Buffer
	if code := run([]string{"--endpoint", s.socket.Path(), "play", "-"}, k, &out, &errOut); code != exitInterrupted || errOut.String() != "davit: interrupted\n" {
		t.Errorf("exit code %d: %s", code, errOut.String())
	}
}

func TestPlayKeep(t *testing.T) {
	s := newShell(t)
	manifest := "apiVersion: v1\nkind: Pod\nmetadata: {name: web, uid: u-1}\nspec:\n  containers: [{name: c, image: a, command: [exit, '1']}]"
	s.play(1, manifest, "--keep")
	if _, err := os.Stat(filepath.Join(s.playDir(), "u-1", "play.json")); err != nil || len(s.cri.Pods()) != 1 {
		t.Errorf("nothing was kept: %v, %v", err, s.cri.Pods())
	}
	s.play(1, manifest) // must not take the first one away
	if len(s.cri.Pods()) != 1 {
		t.Error("a refused pod took another away")
	}
	s.davit(0, "", "rm", "-f", "web")
	s.clean()
}

func TestPlayJSON(t *testing.T) {
	s := newShell(t)
	s.play(0, twoContainers, "-o", "json")
	var seen struct{ Items []struct{ ID string } }
	if err := json.Unmarshal([]byte(s.out), &seen); err != nil || len(seen.Items) != 1 {
		t.Errorf("play -o json = %s", s.out)
	}
}

// pulledAs requires that the last pull came with these credentials.
func (s *shell) pulledAs(user, password string) {
	s.Helper()
	pulls := s.cri.Calls("PullImage")
	auth := pulls[len(pulls)-1].Request.(*runtimeapi.PullImageRequest).Auth
	if auth.GetUsername() != user || auth.GetPassword() != password {
		s.Errorf("auth = %v", auth)
	}
}

// TestImagesListedByID: what a container was made with is often an ID.
func TestImagesListedByID(t *testing.T) {
	s := newShell(t)
	c, err := criclient.Dial(t.Context(), criclient.Options{Runtime: s.socket.Path()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	pod, err := c.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod.PodSandboxId, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: s.cri.AddImage("", "reg/a:1")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.davit(0, "", "ps", "-a")
	s.has(s.out, ` reg/a:1\n$`)
	s.davit(0, "", "rmi", "reg/a:1")
	s.davit(0, "", "ps", "-a")
	s.has(s.out, ` 110{10}\n$`)
}

func TestImages(t *testing.T) {
	s := newShell(t)
	s.davit(0, "", "pull", "--creds", "me:pass:word", "reg/a:1")
	s.has(s.out, `^sha256:110+\n$`)
	s.pulledAs("me", "pass:word")
	s.davit(0, "", "images")
	s.has(s.out, `^IMAGE +ID +SIZE\nreg/a:1 +110{10} +1.27 MiB\n$`)
	s.davit(0, "", "pull", "reg/c:1")
	s.davit(0, "", "images", "reg/c:1")
	s.has(s.out, `^IMAGE +ID +SIZE\nreg/c:1 +110{9}1 +1.27 MiB\n$`)
	s.davit(0, "", "images", "reg/no:1")
	s.has(s.out, `^IMAGE +ID +SIZE\n$`)
	s.cri.AddImage(s.cri.Images()[0].Id, "other/b:2")
	s.davit(0, "", "rmi", "reg/a:1")
	s.has(s.out, `^image reg/a:1 removed, and with it other/b:2\n$`)
	s.davit(1, "", "rmi", "reg/a:1")
	s.has(s.errOut, `^davit: there is no image "reg/a:1"; see davit images\n$`)
	s.davit(1, "", "pull", "--creds", "me", "reg/a:1")
	s.davit(0, "you:secret\n", "pull", "--creds", "-", "reg/a:1")
	s.pulledAs("you", "secret")
	s.cri.Fail("PullImage", status.Error(codes.PermissionDenied, "no"))
	s.davit(1, "", "pull", "reg/a:1")
	s.has(s.errOut, `davit: pull reg/a:1: no; give credentials by davit pull --creds\n$`)
	s.davit(1, "", "pull", "--creds", "me:wrong", "reg/a:1")
	s.has(s.errOut, `davit: pull reg/a:1: no\n$`)
}

func TestStatus(t *testing.T) {
	s := newShell(t)
	s.davit(0, "", "status")
	s.has(s.out, `(?s)^fake 1.2.3 at unix:///.*Runtime +ready +-\nNetwork +ready +-\n.*\(default\) +yes +no\nrunc +no +no\n$`)
	s.cri.SetCondition(runtimeapi.NetworkReady, false, "NetworkPluginNotReady", "no CNI")
	s.davit(1, "", "status")
	s.has(s.out, `Network +not ready +NetworkPluginNotReady: no CNI\n`)
	s.has(s.errOut, `^davit: not ready: Network: NetworkPluginNotReady: no CNI\n$`)
	s.cri.SetCondition("HasNoNotices", false, "Notices", `{"b":"two","a":"one"}`)
	s.davit(1, "", "status")
	s.has(s.out, `(?m)^HasNoNotices +false +Notices: a: one; b: two$`)
	s.has(s.errOut, `^davit: not ready: Network: NetworkPluginNotReady: no CNI\n$`)
}

func TestErrors(t *testing.T) {
	s := newShell(t)
	for _, c := range []struct {
		err  error
		says string
	}{
		{status.Error(codes.Unimplemented, "unknown method"), `^davit: list pods: unknown method; the runtime at \S+ cannot do this\n$`},
		{status.Error(codes.Unavailable, "error reading from server: EOF"), `EOF; the runtime at \S+ ended before it answered: look at its log\n$`},
		{status.Error(codes.Internal, "first\nsecond"), `^davit: list pods: first; second\n$`},
		{status.Error(codes.DeadlineExceeded, "too late"), `^davit: list pods: too late; the runtime did not answer within 2m0s: look at its log, or allow more by --timeout\n$`},
	} {
		s.cri.Fail("StreamPodSandboxes", c.err)
		s.cri.Fail("ListPodSandbox", c.err)
		s.davit(1, "", "pods")
		s.has(s.errOut, c.says)
	}
	s.davit(1, "", "pods", "-o", "yaml")
	s.has(s.errOut, `only json is known`)
	s.davit(1, "", "pods", "--endpoint", filepath.Join(s.dir, "none.sock"))
	s.has(s.errOut, `^davit: endpoint unix://\S+none.sock: there is no such file; start the runtime, or name its socket; this endpoint is given by --endpoint\n$`)
	s.davit(1, "", "exec", "web")
	s.has(s.errOut, `^davit: wrong arguments; use: davit exec POD\[/CONTAINER\] \[-it\] -- COMMAND \[ARGUMENT...\] \[flags\]\n$`)
	s.davit(1, "", "ps", "--bogus")
	s.has(s.errOut, `^davit: unknown flag: --bogus; see davit ps --help\n$`)
	s.cri.Fail("StreamPodSandboxes", nil)
	s.cri.Fail("ListPodSandbox", nil)
	s.davit(1, "", "rm", "one", "two")
	s.has(s.errOut, `^davit: there is no pod "one"; see davit pods\ndavit: there is no pod "two"; see davit pods\n$`)
	s.davit(1, "", "imges")
	s.has(s.errOut, `^davit: there is no command "imges"; is image or images meant\?; see davit --help\n$`)
	s.davit(1, "", "frobnicate", "-x")
	s.has(s.errOut, `^davit: `)
	s.davit(1, "", "frobnicate", "x")
	s.has(s.errOut, `^davit: there is no command "frobnicate"; see davit --help\n$`)
	s.davit(0, "")
	s.has(s.out, `(?s)^Run Kubernetes pods.*Available Commands:`)
	s.davit(1, "", "pods", "--timeout", "-1s")
	s.has(s.errOut, `^davit: --timeout: -1s is negative\n$`)
	s.davit(0, "", "--version")
	s.has(s.out, `^davit \S+\n$`)
	s.davit(1, "", "exec", "web", "ls", "-l")
	s.has(s.errOut, `^davit: unknown shorthand flag: 'l' in -l; if it is the command's, put -- before the command\n$`)
	s.davit(1, "", "play", filepath.Join(s.dir, "none.yaml"))
	s.has(s.errOut, `^davit: read manifest: open .*none.yaml: no such file or directory\n$`)
}

// TestOtherRuntimes: one that knows v1alpha2 only, and one that has no CRI.
func TestOtherRuntimes(t *testing.T) {
	s := newShell(t)
	s.socket.Vanish()
	if err := s.socket.Return(crifake.V1alpha2()); err != nil {
		t.Fatal(err)
	}
	s.play(0, twoContainers)
	s.davit(0, "", "ps")
	s.has(s.out, `shop/web +server +running`)
	s.davit(0, "", "version")
	s.has(s.out, `CRI     v1alpha2: v1 answered Unimplemented \(.*\); v1alpha2 answered Version\n`)
	s.davit(0, "", "status")
	s.has(s.out, `\nThe runtime says nothing of what its handlers can do.\n$`)
	for _, args := range [][]string{
		{"pods"}, {"images"}, {"logs", "web"}, {"inspect", "web"}, {"inspect", "web", "-c", "server"}, {"exec", "--timeout", "5s", "web", "-c", "server", "--", "ls"},
		{"pull", "reg/c:1"}, {"rmi", "reg/c:1"}, {"stop", "web"},
	} {
		s.davit(0, "", args...)
	}
	s.davit(0, "", "rm", "-f", "web")
	s.clean()
	s.socket.Vanish()
	if err := s.socket.Return(crifake.Serves{}); err != nil {
		t.Fatal(err)
	}
	s.davit(1, "", "pods")
	s.has(s.errOut, `^davit: list pods: runtime service at unix://\S+: no version of the CRI can be used: v1 answered Unimplemented \(.*\); v1alpha2 answered Unimplemented \(.*\); `+
		`name the socket of a runtime that serves the CRI, or switch the CRI on in this one's configuration; this endpoint is given by --endpoint\n$`)
}

// What is stopped or removed is told to programs as one message, and only that;
// of what failed, the error is told besides.
func TestRemovalsAsJSON(t *testing.T) {
	s := newShell(t)
	s.play(0, twoContainers)
	read := func(what string, want int) map[string]any {
		t.Helper()
		var all map[string][]map[string]any
		if err := json.Unmarshal([]byte(s.out), &all); err != nil || len(all[what]) != want {
			t.Fatalf("%v in\n%s", err, s.out)
		}
		if want == 0 {
			return nil
		}
		return all[what][0]
	}
	s.davit(0, "", "stop", "-o", "json", "web")
	if pod := read("items", 1); pod["state"] != "SANDBOX_NOTREADY" || pod["id"] == "" {
		t.Errorf("stopped: %v", pod)
	}
	s.davit(1, "", "rm", "-o", "json", "none", "web")
	s.has(s.errOut, `^davit: there is no pod "none"`)
	if pod := read("items", 1); pod["metadata"].(map[string]any)["name"] != "web" {
		t.Errorf("removed: %v", pod)
	}
	s.davit(0, "", "rm", "-f", "-o", "json", "web")
	read("items", 0)
	s.davit(0, "", "pull", "reg/a:1")
	s.davit(1, "", "rmi", "-o", "json", "reg/a:1", "reg/a:1")
	s.has(s.errOut, `^davit: there is no image "reg/a:1"`)
	if image := read("images", 1); !slices.Equal(image["repoTags"].([]any), []any{"reg/a:1"}) {
		t.Errorf("removed: %v", image)
	}
	s.clean()
}

// Pods with user namespaces get IDs of the host that no other pod has.
func TestPlayUsers(t *testing.T) {
	s := newShell(t)
	const head = "apiVersion: v1\nkind: List\nitems:\n"
	pod := func(name string) string {
		return fmt.Sprintf("  - {apiVersion: v1, kind: Pod, metadata: {name: %s, uid: %[1]s}, spec: {hostUsers: false, containers: [{name: c, image: \"reg/a:1\"}]}}\n", name)
	}
	last := func() uint32 {
		calls := s.cri.Calls("RunPodSandbox")
		u := calls[len(calls)-1].Request.(*runtimeapi.RunPodSandboxRequest).Config.Linux.SecurityContext.NamespaceOptions.GetUsernsOptions()
		if u.GetMode() != runtimeapi.NamespaceMode_POD || len(u.Uids) != 1 || u.Uids[0].Length != 65536 || u.Uids[0].HostId%65536 != 0 || !proto.Equal(u.Uids[0], u.Gids[0]) {
			t.Fatalf("user namespace: %v", u)
		}
		return u.Uids[0].HostId
	}
	s.play(0, head+pod("a"))
	first := last()
	s.davit(0, "", "rm", "-f", "a")
	c, err := criclient.Dial(t.Context(), criclient.Options{Runtime: s.socket.Path()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r, err := c.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "other", Uid: "o", Namespace: "n"}, Annotations: map[string]string{"davit.play/users": fmt.Sprint(first)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.play(0, head+pod("a")+pod("b"))
	if last() == first {
		t.Errorf("%d is given twice", first)
	}
	s.davit(0, "", "inspect", "a")
	if strings.Contains(s.out, fmt.Sprint(first)) {
		t.Errorf("%d is given twice:\n%s", first, s.out)
	}
	if _, err := c.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId}); err != nil {
		t.Error(err)
	}
	s.davit(0, "", "rm", "-f", "a", "b")
	s.clean()
}
