package ocispec

import (
	"os"
	"os/exec"
	"strings"

	"github.com/moby/profiles/apparmor"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// defaultAppArmor is the profile of containers that name none. davit loads it,
// and never takes it out of the kernel again.
const defaultAppArmor = "davit-default"

// appArmor is what this host has of it. Tests have their own.
type appArmor struct {
	enabled func() bool // the kernel enforces it, and profiles can be loaded
	loaded  func(name string) (bool, error)
	install func(name string) error
}

// AppArmor reports whether the kernel enforces it.
//
// kernel: admin-guide/LSM/apparmor.rst.
func AppArmor() bool {
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.TrimSpace(string(enabled)) == "Y"
}

var thisAppArmor = appArmor{enabled: AppArmor, loaded: apparmor.IsLoaded, install: installAppArmor}

func installAppArmor(name string) error {
	if _, err := exec.LookPath("apparmor_parser"); err != nil {
		return err
	}
	return apparmor.InstallDefault(name)
}

// profile returns the name of the profile for a container, empty for none. It
// sees to it that the default one is loaded.
//
// It returns Precondition for a profile that is not loaded, Unimplemented for
// one asked for where there is no AppArmor.
//
// CRI: api.proto, LinuxContainerSecurityContext, "equivalent to not specifying
// a profile".
func (a appArmor) profile(sc *runtimeapi.LinuxContainerSecurityContext) (string, error) {
	kind, name, err := appArmorWanted(sc)
	if err != nil || kind == runtimeapi.SecurityProfile_Unconfined {
		return "", err
	}
	local := kind == runtimeapi.SecurityProfile_Localhost
	if !a.enabled() {
		if local {
			return "", fault.New(fault.Unimplemented, "", "AppArmor profile %q: AppArmor is not enabled on this host", name)
		}
		return "", nil
	}
	loaded, err := a.loaded(name)
	switch {
	case loaded:
		return name, nil
	case local && err != nil:
		return "", fault.New(fault.Internal, "", "AppArmor profile %q: %w", name, err)
	case local:
		return "", fault.New(fault.Precondition, "", "AppArmor profile %q is not loaded on this host", name)
	}
	if err := a.install(name); err != nil {
		return "", fault.New(fault.Unavailable, "", "load AppArmor profile %s: %w", name, err)
	}
	return name, nil
}

// appArmorWanted says which profile the container wants. Neither field set
// means the default one; the newer field wins.
func appArmorWanted(sc *runtimeapi.LinuxContainerSecurityContext) (kind runtimeapi.SecurityProfile_ProfileType, name string, err error) {
	const unconfined, runtimeDefault = runtimeapi.SecurityProfile_Unconfined, runtimeapi.SecurityProfile_RuntimeDefault
	switch {
	case sc.GetPrivileged():
		return unconfined, "", nil
	case sc.GetApparmor() != nil:
		kind, name = sc.Apparmor.ProfileType, strings.TrimPrefix(sc.Apparmor.LocalhostRef, "localhost/")
	default:
		//lint:ignore SA1019 old kubelets send only this string
		if kind, name, err = deprecatedProfile(sc.GetApparmorProfile(), runtimeDefault); err != nil {
			return unconfined, "", fault.New(fault.Invalid, "", "AppArmor: %w", err)
		}
	}
	switch {
	case kind == runtimeDefault:
		name = defaultAppArmor
	case kind == runtimeapi.SecurityProfile_Localhost && name == "":
		return unconfined, "", fault.New(fault.Invalid, "", "AppArmor: a local profile without a name")
	}
	return kind, name, nil
}
