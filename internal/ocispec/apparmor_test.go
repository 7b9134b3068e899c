package ocispec

import (
	"errors"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

func TestAppArmor(t *testing.T) {
	const ok = fault.Kind(255)
	profile := func(kind runtimeapi.SecurityProfile_ProfileType, name string) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: name}
	}
	const (
		runtimeDefault = runtimeapi.SecurityProfile_RuntimeDefault
		unconfined     = runtimeapi.SecurityProfile_Unconfined
		localhost      = runtimeapi.SecurityProfile_Localhost
	)
	type context = runtimeapi.LinuxContainerSecurityContext
	for _, tt := range []struct {
		name       string
		sc         *context
		enabled    string // the profile with AppArmor
		kind       fault.Kind
		withoutIt  string // the profile without
		absentKind fault.Kind
	}{
		{"none", nil, "davit-default", ok, "", ok},
		{"empty", &context{}, "davit-default", ok, "", ok},
		{"default", &context{Apparmor: profile(runtimeDefault, "")}, "davit-default", ok, "", ok},
		{"unconfined", &context{Apparmor: profile(unconfined, "")}, "", ok, "", ok},
		{"local", &context{Apparmor: profile(localhost, "mine")}, "mine", ok, "", fault.Unimplemented},
		{"local, as in annotations", &context{Apparmor: profile(localhost, "localhost/mine")}, "mine", ok, "", fault.Unimplemented},
		{"local, not loaded", &context{Apparmor: profile(localhost, "other")}, "", fault.Precondition, "", fault.Unimplemented},
		{"local, nameless", &context{Apparmor: profile(localhost, "")}, "", fault.Invalid, "", fault.Invalid},
		{"old default", &context{ApparmorProfile: "runtime/default"}, "davit-default", ok, "", ok},
		{"old unconfined", &context{ApparmorProfile: "unconfined"}, "", ok, "", ok},
		{"old local", &context{ApparmorProfile: "localhost/mine"}, "mine", ok, "", fault.Unimplemented},
		{"old local, not loaded", &context{ApparmorProfile: "localhost/other"}, "", fault.Precondition, "", fault.Unimplemented},
		{"old nonsense", &context{ApparmorProfile: "mine"}, "", fault.Invalid, "", fault.Invalid},
		{"the new one wins", &context{Apparmor: profile(unconfined, ""), ApparmorProfile: "localhost/other"}, "", ok, "", ok},
		{"privileged", &context{Privileged: true, Apparmor: profile(localhost, "other"), ApparmorProfile: "nonsense"}, "", ok, "", ok},
	} {
		loaded := []string{"mine"}
		host := appArmor{
			enabled: func() bool { return true },
			loaded:  func(name string) (bool, error) { return slices.Contains(loaded, name), nil },
			install: func(name string) error { loaded = append(loaded, name); return nil },
		}
		check := func(want string, kind fault.Kind) {
			t.Helper()
			got, err := host.profile(tt.sc)
			if got != want || kind == ok && err != nil || kind != ok && !fault.Is(err, kind) {
				t.Errorf("%s: %q, %v", tt.name, got, err)
			}
		}
		check(tt.enabled, tt.kind)
		if (tt.enabled == "davit-default") != slices.Contains(loaded, "davit-default") {
			t.Errorf("%s: loaded are %q", tt.name, loaded)
		}
		host.install = func(string) error { return errors.New("it is loaded already") }
		check(tt.enabled, tt.kind)
		host.enabled = func() bool { return false }
		check(tt.withoutIt, tt.absentKind)
	}
}

func TestAppArmorTrouble(t *testing.T) {
	host := appArmor{
		enabled: func() bool { return true },
		loaded:  func(string) (bool, error) { return false, errors.New("no securityfs") },
		install: func(string) error { return errors.New("no apparmor_parser") },
	}
	if _, err := host.profile(nil); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "davit-default: no apparmor_parser") {
		t.Error(err)
	}
	//lint:ignore SA1019 the old field
	sc := &runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: "localhost/mine"}
	if _, err := host.profile(sc); !strings.Contains(err.Error(), `"mine": no securityfs`) {
		t.Error(err)
	}
	in := given()
	in.Found.AppArmor = "mine"
	if s, err := Build(in); err != nil || s.Process.ApparmorProfile != "mine" {
		t.Errorf("%v", err)
	}
}
