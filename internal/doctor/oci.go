package doctor

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

var ociChecks = []Check{
	{Name: "oci-runtimes", What: "the OCI runtimes of davit's handlers: found, working, of a version that will do", run: checkOCI, Faults: []Fault{
		{"oci-runtime-missing", Error, "neither crun nor runc is installed, or the program of a configured handler is not there"},
		{"default-runtime-missing", Error, "default_runtime names a handler whose program is not there"},
		{"oci-runtime-not-executable", Error, "an OCI runtime's program may not be executed"},
		{"oci-runtime-broken", Error, "an OCI runtime does not tell its version"},
		{"oci-runtime-too-old", Error, "runc is older than 1.0, or crun than 1.0"},
		{"oci-runtime-without-seccomp", Warning, "an OCI runtime was built without seccomp: containers with a profile fail"},
	}},
}

// builtinHandlers need no configuration, the preferred one first.
var builtinHandlers = []string{"crun", "runc"}

const installCrun = "apt-get install crun || dnf install crun"

func checkOCI(l *look) {
	d := l.davit()
	if !d.here() {
		l.skip("davit is not installed")
		return
	}
	programs := maps.Clone(d.Runtimes)
	if programs == nil {
		programs = map[string]string{}
	}
	for handler, program := range programs {
		if program == "" {
			programs[handler] = handler
		}
	}
	found := 0
	for _, name := range builtinHandlers {
		if path, _ := l.find(name, l.Path); path != "" && programs[name] == "" {
			programs[name] = path
		}
	}
	handlers := slices.Sorted(maps.Keys(programs))
	if def := d.DefaultRuntime; def != "" && programs[def] == "" {
		programs[def] = def
		handlers = append(handlers, def)
	}
	for _, handler := range handlers {
		if version, ok := l.checkRuntime(handler, programs[handler], handler == d.DefaultRuntime); ok {
			found++
			l.okay("%s", version)
		}
	}
	if len(programs) == 0 {
		l.fault("oci-runtime-missing", installCrun, "neither crun nor runc is installed")
	}
}

// checkRuntime tells what is wrong with one, and returns its name and version.
func (l *look) checkRuntime(handler, program string, isDefault bool) (string, bool) {
	path, runs := l.find(program, l.Path)
	switch {
	case path == "" && isDefault:
		l.fault("default-runtime-missing", installThe(program)+"   # or change default_runtime in /etc/davit/config.toml", "default_runtime is %s, but there is no program %s", handler, program)
		return "", false
	case path == "":
		l.fault("oci-runtime-missing", installThe(program)+"   # or take runtimes."+handler+" out of /etc/davit/config.toml", "handler %s: there is no program %s", handler, program)
		return "", false
	case !runs:
		l.fault("oci-runtime-not-executable", "chmod 0755 "+path, "handler %s: %s may not be executed", handler, path)
		return "", false
	}
	out, err := l.Run(l.ctx, nil, path, "--version")
	switch {
	case errors.Is(err, errSlow):
		l.unseen(path+" --version", err)
		return "", false
	case err != nil:
		l.fault("oci-runtime-broken", installThe(filepath.Base(program))+"   # again", "handler %s: %s --version: %v", handler, path, err)
		return "", false
	}
	first, rest, _ := strings.Cut(strings.TrimSpace(out), "\n")
	name, number, _ := strings.Cut(first, " version ")
	if v := parseVersion(number); (name == "crun" || name == "runc") && v.known() && !v.atLeast(1, 0) {
		l.fault("oci-runtime-too-old", "apt-get install --only-upgrade "+name, "handler %s: %s is %s; 1.0 is the oldest that will do", handler, path, number)
		return "", false
	}
	// Of those two it is known where they say so.
	if name == "crun" && !strings.Contains(rest, "SECCOMP") || name == "runc" && !strings.Contains(rest, "libseccomp") {
		l.fault("oci-runtime-without-seccomp", installThe(name)+"   # a build with libseccomp", "handler %s: %s was built without seccomp", handler, path)
	}
	if name == handler {
		return name + " " + number, true
	}
	return fmt.Sprintf("%s (%s %s)", handler, name, number), true
}

func installThe(program string) string {
	if filepath.IsAbs(program) {
		return "ls -l " + filepath.Dir(program)
	}
	return fmt.Sprintf("apt-get install %s || dnf install %s", program, program)
}
