package ociruntime

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/davit-runtime/davit/internal/fault"
)

// sbin are folders that a daemon's PATH often lacks.
var sbin = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// Find returns the absolute path of a runtime program: name itself if it has a
// slash, else the first of that name on PATH and in the usual folders. It
// returns Unavailable, naming what was tried, if there is none.
func Find(name string) (string, error) {
	var tried []string
	if strings.Contains(name, "/") {
		tried = []string{name}
	} else {
		for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), sbin...) {
			if filepath.IsAbs(dir) {
				tried = append(tried, filepath.Join(dir, name))
			}
		}
	}
	for _, path := range tried {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return filepath.Abs(path)
		}
	}
	return "", fault.New(fault.Unavailable, "ociruntime.Find", "OCI runtime %s is not on this host", name)
}

// Features are what a runtime says of itself.
type Features struct {
	Version string // first line of --version
	// Known is whether the program has `features`; crun has it from 1.8.6,
	// runc from 1.1.0. Without it the other fields are empty.
	Known        bool
	OCIVersion   string          // highest ociVersion accepted
	MountOptions map[string]bool // nil: not said
	Annotations  map[string]string
	Seccomp      bool
}

// Probe asks a runtime for its version and features. Absence of `features` is no error.
func Probe(ctx context.Context, path string) (Features, error) {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return Features{}, fault.New(fault.Unavailable, "ociruntime.Probe", "OCI runtime %s cannot be run: %w", path, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	f := Features{Version: strings.TrimSpace(first)}
	out, err = exec.CommandContext(ctx, path, "features").Output()
	if err != nil {
		return f, ctx.Err()
	}
	f.parse(out)
	return f, nil
}

func (f *Features) parse(out []byte) {
	var doc struct {
		OCIVersionMax string            `json:"ociVersionMax"`
		MountOptions  []string          `json:"mountOptions"`
		Annotations   map[string]string `json:"annotations"`
		Linux         struct {
			Seccomp struct {
				Enabled bool `json:"enabled"`
			} `json:"seccomp"`
		} `json:"linux"`
	}
	if json.Unmarshal(out, &doc) != nil {
		return
	}
	f.Known, f.OCIVersion, f.Annotations, f.Seccomp = true, doc.OCIVersionMax, doc.Annotations, doc.Linux.Seccomp.Enabled
	f.MountOptions = make(map[string]bool, len(doc.MountOptions))
	for _, o := range doc.MountOptions {
		f.MountOptions[o] = true
	}
}
