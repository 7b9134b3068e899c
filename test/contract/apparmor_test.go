package contract

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// confining is a profile that lets a program do all but write below /tmp.
const confining = `
profile PROFILE flags=(attach_disconnected,mediate_deleted) {
  file,
  capability,
  network,
  signal,
  ptrace,
  deny /tmp/** w,
}
`

// TestAppArmor: containers are confined as the new field or, without it, the
// old string says.
func TestAppArmor(t *testing.T) {
	judged(t)
	enabled, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if !strings.HasPrefix(string(enabled), "Y") {
		t.Skip("the kernel does not enforce AppArmor")
	}
	w := shared(t)
	w.loadProfile("contract-confined")
	podID, pod := w.pod("apparmor", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	type security = runtimeapi.LinuxContainerSecurityContext
	profile := func(kind runtimeapi.SecurityProfile_ProfileType, name string) func(*security) {
		return func(s *security) {
			s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: name}
		}
	}
	old := func(name string) func(*security) {
		//lint:ignore SA1019 old kubelets send only this string
		return func(s *security) { s.ApparmorProfile = name }
	}
	both := func(f, g func(*security)) func(*security) { return func(s *security) { f(s); g(s) } }
	const (
		standard   = runtimeapi.SecurityProfile_RuntimeDefault
		unconfined = runtimeapi.SecurityProfile_Unconfined
		local      = runtimeapi.SecurityProfile_Localhost
		ours       = "contract-confined (enforce)"
		none       = "unconfined"
	)
	for name, test := range map[string]struct {
		change func(*security)
		label  string // "": any but none, ours excepted
	}{
		"local":             {profile(local, "contract-confined"), ours},
		"unconfined":        {profile(unconfined, ""), none},
		"default":           {profile(standard, ""), ""},
		"old local":         {old("localhost/contract-confined"), ours},
		"old unconfined":    {old("unconfined"), none},
		"old default":       {old("runtime/default"), ""},
		"new before old":    {both(old("unconfined"), profile(local, "contract-confined")), ours},
		"new undoes old":    {both(old("localhost/contract-confined"), profile(unconfined, "")), none},
		"default for old":   {both(old("localhost/contract-confined"), profile(standard, "")), ""},
		"privileged: plain": {both(profile(local, "contract-confined"), func(s *security) { s.Privileged = true }), none},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.within(t)
			c := w.config(strings.NewReplacer(" ", "-", ":", "").Replace(name), "sh", "-c", "cat /proc/self/attr/current; touch /tmp/x 2>/dev/null && echo written")
			test.change(c.Linux.SecurityContext)
			s := w.exit(podID, pod, c)
			log, err := os.ReadFile(s.LogPath)
			if err != nil {
				t.Fatal(err)
			}
			label := test.label
			confined := strings.Contains(string(log), ours)
			switch {
			case label != "" && !strings.Contains(string(log), " F "+label), label == "" && (confined || strings.Contains(string(log), " F "+none)):
				t.Errorf("label:\n%s", log)
			case strings.Contains(string(log), "written") == confined:
				t.Errorf("the profile is not enforced, or another is:\n%s", log)
			}
		})
	}
	for name, change := range map[string]func(*security){
		"not loaded": profile(local, "contract-no-such"), "old, not loaded": old("localhost/contract-no-such"),
	} {
		t.Run(name, func(t *testing.T) {
			w := w.within(t)
			c := w.config("absent", "true")
			change(c.Linux.SecurityContext)
			id, err := w.launch(podID, pod, c)
			if want(t, err, codes.FailedPrecondition, "contract-no-such"); id != "" {
				must(t, w.remove(id), codes.OK)
			}
		})
	}
}

// loadProfile loads the confining profile under a name, until the test's end.
func (w *world) loadProfile(name string) {
	w.t.Helper()
	file := filepath.Join(w.t.TempDir(), "profile")
	if err := os.WriteFile(file, []byte(strings.Replace(confining, "PROFILE", name, 1)), 0o644); err != nil {
		w.t.Fatal(err)
	}
	if out, err := exec.CommandContext(w.ctx, "apparmor_parser", "-rK", file).CombinedOutput(); err != nil {
		w.t.Fatalf("apparmor_parser: %v\n%s", err, out)
	}
	w.t.Cleanup(func() {
		if out, err := exec.CommandContext(context.Background(), "apparmor_parser", "-R", file).CombinedOutput(); err != nil {
			w.t.Errorf("apparmor_parser: %v\n%s", err, out)
		}
	})
}
