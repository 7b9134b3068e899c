package ocispec

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// SeccompKey names the filter that a profile compiles to on this machine:
// equal profiles have equal keys. It is empty for no profile.
func SeccompKey(p *specs.LinuxSeccomp) string {
	if p == nil {
		return ""
	}
	text, err := json.Marshal(p)
	if err != nil {
		return "" // strings and numbers always marshal
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// seccompProfile returns the filter for s, whose capabilities decide what the
// default profile lets through. localhost is the text of a Localhost profile.
func seccompProfile(s *specs.Spec, sc *runtimeapi.LinuxContainerSecurityContext, localhost []byte) (*specs.LinuxSeccomp, error) {
	kind, _, err := seccompWanted(sc)
	if err != nil {
		return nil, err
	}
	var p *specs.LinuxSeccomp
	switch kind {
	case runtimeapi.SecurityProfile_RuntimeDefault:
		if p, err = seccomp.GetDefaultProfile(s); err != nil {
			return nil, fault.New(fault.Internal, "", "default seccomp profile: %w", err)
		}
	case runtimeapi.SecurityProfile_Localhost:
		if err = checkProfile(localhost); err == nil {
			p, err = seccomp.LoadProfile(string(localhost), s)
		}
		if err != nil {
			return nil, fault.New(fault.Invalid, "", "seccomp profile: %w", err)
		}
	}
	return p, nil
}

// checkProfile refuses two things that seccomp.LoadProfile does not: a profile
// that says nothing, which it takes for "unconfined", and a null among the
// rules, on which it panics.
func checkProfile(text []byte) error {
	var p seccomp.Seccomp
	if err := json.Unmarshal(text, &p); err != nil {
		return err
	}
	if p.DefaultAction == "" {
		return errors.New("no defaultAction")
	}
	if slices.Contains(p.Syscalls, nil) {
		return errors.New("a rule is null")
	}
	return nil
}

// seccompWanted says which profile the container wants, and for Localhost the
// path of its file. Neither field set means unconfined; the newer field wins.
//
// CRI: api.proto, LinuxContainerSecurityContext.
func seccompWanted(sc *runtimeapi.LinuxContainerSecurityContext) (kind runtimeapi.SecurityProfile_ProfileType, path string, err error) {
	const unconfined = runtimeapi.SecurityProfile_Unconfined
	switch {
	case sc.GetPrivileged():
		return unconfined, "", nil
	case sc.GetSeccomp() != nil:
		kind, path = sc.Seccomp.ProfileType, sc.Seccomp.LocalhostRef
	default:
		kind, path, err = deprecatedProfile(sc.GetSeccompProfilePath(), unconfined)
		if err != nil {
			return unconfined, "", fault.New(fault.Invalid, "", "seccomp: %w", err)
		}
	}
	switch kind {
	case unconfined, runtimeapi.SecurityProfile_RuntimeDefault:
		return kind, "", nil
	case runtimeapi.SecurityProfile_Localhost:
		if !filepath.IsAbs(path) {
			return unconfined, "", fault.New(fault.Invalid, "", "seccomp profile %q is not an absolute path", path)
		}
		return kind, path, nil
	}
	return unconfined, "", fault.New(fault.Invalid, "", "seccomp: unknown profile type %d", kind)
}

// deprecatedProfile reads the string that old kubelets send, for seccomp and
// AppArmor alike; empty is what empty stands for.
func deprecatedProfile(s string, empty runtimeapi.SecurityProfile_ProfileType) (runtimeapi.SecurityProfile_ProfileType, string, error) {
	ref, localhost := strings.CutPrefix(s, "localhost/")
	switch {
	case s == "":
		return empty, "", nil
	case s == "unconfined":
		return runtimeapi.SecurityProfile_Unconfined, "", nil
	case s == "runtime/default" || s == "docker/default":
		return runtimeapi.SecurityProfile_RuntimeDefault, "", nil
	case localhost:
		return runtimeapi.SecurityProfile_Localhost, ref, nil
	}
	return empty, "", fault.New(fault.Invalid, "", "unknown profile %q", s)
}
