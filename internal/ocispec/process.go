package ocispec

import (
	"bytes"
	"path"
	"strings"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/davit-runtime/davit/internal/fault"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func process(in Input) (*specs.Process, error) {
	c := in.Container
	sc := c.GetLinux().GetSecurityContext()
	args, err := commandLine(in)
	if err != nil {
		return nil, err
	}
	env, err := environment(in)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(sc, in.Capabilities)
	if err != nil {
		return nil, err
	}
	dir := c.WorkingDir
	if dir == "" {
		dir = in.Image.WorkingDir
	}
	return &specs.Process{
		ApparmorProfile: in.Found.AppArmor,
		Terminal:        c.Tty,
		User:            specs.User{UID: in.User.UID, GID: in.User.GID, AdditionalGids: in.User.AdditionalGids},
		Args:            args,
		Env:             env,
		Cwd:             path.Join("/", dir),
		Capabilities:    caps,
		NoNewPrivileges: sc.GetNoNewPrivs(),
		OOMScoreAdj:     oomScoreAdj(in),
	}, nil
}

// commandLine follows Kubernetes: command replaces the image's entrypoint and drops
// its command; args replace the image's command.
func commandLine(in Input) ([]string, error) {
	entrypoint, rest := in.Container.Command, in.Container.Args
	if len(entrypoint) == 0 {
		entrypoint = in.Image.Entrypoint
		if len(rest) == 0 {
			rest = in.Image.Cmd
		}
	}
	all := append(append([]string{}, entrypoint...), rest...)
	if len(all) == 0 || all[0] == "" {
		return nil, fault.New(fault.Invalid, "", "no command: neither the container nor its image names one")
	}
	for _, a := range all {
		if strings.ContainsRune(a, 0) {
			return nil, fault.New(fault.Invalid, "", "argument %q holds a zero byte", a)
		}
	}
	return all, nil
}

// environment merges davit's defaults, the image's variables and the
// container's; of two with the same name the last wins, in the place of the first.
func environment(in Input) ([]string, error) {
	hostname := in.Pod.Hostname
	if hostname == "" {
		hostname = in.Found.Hostname
	}
	env := []string{defaultPath, "HOSTNAME=" + hostname}
	if in.Container.Tty {
		env = append(env, "TERM=xterm")
	}
	if in.User.Home != "" {
		env = append(env, "HOME="+in.User.Home)
	}
	env = append(env, in.Image.Env...)
	for _, e := range in.Container.Envs {
		if e.Key == "" || strings.ContainsAny(e.Key, "=\x00") || bytes.IndexByte(e.Value, 0) >= 0 {
			return nil, fault.New(fault.Invalid, "", "environment variable %q: bad name, or a zero byte in the value", e.Key)
		}
		// A spec is JSON: crun refuses other bytes, runc replaces them.
		if !utf8.Valid(e.Value) {
			return nil, fault.New(fault.Unimplemented, "", "environment variable %q: its value is not UTF-8, and OCI runtimes cannot be given others", e.Key)
		}
		env = append(env, e.Key+"="+string(e.Value))
	}
	at := map[string]int{}
	merged := env[:0]
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		if i, ok := at[name]; ok {
			merged[i] = e
			continue
		}
		at[name] = len(merged)
		merged = append(merged, e)
	}
	return merged, nil
}
