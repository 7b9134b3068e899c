// Package packaging_test looks at what is installed: the services of systemd
// and the Debian package, as far as that needs neither.
package packaging_test

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const top = "../.."

// A unit is a unit file: values by "Section.Key".
type unit map[string][]string

// systemd: systemd.syntax(7).
func readUnit(t *testing.T, path string) unit {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	u, section := unit{}, ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		key, value, assigns := strings.Cut(line, "=")
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			section = strings.Trim(line, "[]")
		case !assigns || section == "":
			t.Errorf("%s: line %q", path, line)
		default:
			u[section+"."+key] = append(u[section+"."+key], value)
		}
	}
	return u
}

// What keeps a restart of davitd from being felt.
func TestUnits(t *testing.T) {
	for name, want := range map[string]map[string]string{
		"davitd.service": {
			"Service.Type": "notify", "Service.ExecStart": "/usr/bin/davitd", "Service.ExecReload": "/bin/kill -HUP $MAINPID", "Service.Restart": "always",
			"Service.KillMode": "process", "Service.OOMPolicy": "continue", "Service.TasksMax": "infinity",
			"Unit.StartLimitIntervalSec": "0", "Unit.Before": "kubelet.service", "Unit.Wants": "davit-keeper.service",
			"Install.WantedBy": "multi-user.target",
		},
		"davit-keeper.service": {
			"Service.Type": "notify", "Service.ExecStart": "/usr/bin/davit-monitor keep --wait", "Service.Restart": "always",
			"Service.ExecReload": "/usr/bin/davit-monitor replace",
			"Service.KillMode":   "process", "Service.OOMPolicy": "continue", "Service.TasksMax": "infinity",
			"Unit.StartLimitIntervalSec": "0",
		},
	} {
		u := readUnit(t, filepath.Join(top, "packaging", name))
		for key, value := range want {
			if !slices.Equal(u[key], []string{value}) {
				t.Errorf("%s: %s is %q, want %q", name, key, u[key], value)
			}
		}
		if name == "davitd.service" && !slices.Contains(strings.Fields(strings.Join(u["Unit.After"], " ")), "davit-keeper.service") {
			t.Errorf("%s does not come after the keeper", name)
		}
		for key := range u {
			if strings.HasPrefix(key, "Unit.Requires") || strings.HasPrefix(key, "Unit.BindsTo") || strings.HasPrefix(key, "Unit.PartOf") {
				t.Errorf("%s: by %s one service would end with the other", name, key)
			}
		}
	}
}

// fake makes programs that take little room.
func fake(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, program := range []string{"davit", "davitd", "davit-monitor"} {
		if err := os.WriteFile(filepath.Join(dir, program), []byte("#!/bin/sh\necho "+program+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	var wrong bytes.Buffer
	cmd.Stderr = &wrong
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, wrong.Bytes())
	}
	return string(out)
}

var installed = []string{
	"bin/davit", "bin/davit-monitor", "bin/davitd",
	"lib/systemd/system/davit-keeper.service", "lib/systemd/system/davitd.service",
	"share/bash-completion/completions/davit",
}

// make install puts services beside programs that they start. Where systemd
// is, it is asked what it thinks of them.
func TestInstall(t *testing.T) {
	to := t.TempDir()
	prefix := filepath.Join(to, "opt/davit")
	run(t, nil, "make", "-C", top, "install-files", "BIN="+fake(t), "PREFIX="+prefix)
	var got []string
	if err := filepath.WalkDir(prefix, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			got = append(got, strings.TrimPrefix(path, prefix+"/"))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if slices.Sort(got); !slices.Equal(got, installed) {
		t.Errorf("installed %q, want %q", got, installed)
	}
	var units []string
	for _, name := range []string{"davitd.service", "davit-keeper.service"} {
		path := filepath.Join(prefix, "lib/systemd/system", name)
		units = append(units, path)
		u := readUnit(t, path)
		for _, line := range slices.Concat(u["Service.ExecStart"], u["Service.ExecReload"]) {
			if program := strings.Fields(line)[0]; program != "/bin/kill" && filepath.Dir(program) != filepath.Join(prefix, "bin") {
				t.Errorf("%s starts %s", name, program)
			}
		}
	}
	if analyze, err := exec.LookPath("systemd-analyze"); err == nil {
		if out, err := exec.Command(analyze, append([]string{"verify", "--man=no"}, units...)...).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze verify: %v\n%s", err, out)
		}
	}
}

// The Debian package: what is in it, whose, and that it comes out the same each time.
func TestDebianPackage(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("needs dpkg-deb: ", err)
	}
	bin := fake(t)
	build := func() string {
		out := t.TempDir()
		run(t, []string{"BIN=" + bin, "SOURCE_DATE_EPOCH=1700000000"}, filepath.Join(top, "packaging/deb.sh"), "1.2.0-rc.1", "arm64", out)
		return filepath.Join(out, "davit_1.2.0~rc.1_arm64.deb")
	}
	deb := build()
	one, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	if two, err := os.ReadFile(build()); err != nil || !bytes.Equal(one, two) {
		t.Errorf("built twice, it is not the same (%v)", err)
	}
	fields := map[string]string{"Package": "davit", "Version": "1.2.0~rc.1", "Architecture": "arm64"}
	for name := range maps.Keys(fields) {
		if got := strings.TrimSpace(run(t, nil, "dpkg-deb", "-f", deb, name)); got != fields[name] {
			t.Errorf("%s is %q, want %q", name, got, fields[name])
		}
	}
	run(t, nil, "dpkg", "--compare-versions", "1.2.0~rc.1", "lt", "1.2.0")
	var files []string
	line := regexp.MustCompile(`^([-d]\S+) (\S+) +\d+ (2023-11-14) \S+ \./(.*)$`)
	for _, text := range strings.Split(strings.TrimSpace(run(t, []string{"TZ=UTC"}, "dpkg-deb", "-c", deb)), "\n") {
		m := line.FindStringSubmatch(text)
		if m == nil {
			t.Errorf("entry %q", text)
			continue
		}
		mode := "-rw-r--r--"
		if m[1][0] == 'd' {
			mode = "drwxr-xr-x"
		} else {
			files = append(files, m[4])
			if strings.HasPrefix(m[4], "usr/bin/") {
				mode = "-rwxr-xr-x"
			}
		}
		if m[1] != mode || m[2] != "root/root" {
			t.Errorf("entry %q, want %s of root", text, mode)
		}
	}
	want := []string{"usr/share/doc/davit/changelog.gz", "usr/share/doc/davit/copyright", "usr/share/lintian/overrides/davit"}
	for _, name := range installed {
		want = append(want, "usr/"+name)
	}
	slices.Sort(files)
	slices.Sort(want)
	if !slices.Equal(files, want) {
		t.Errorf("files %q, want %q", files, want)
	}
	control := filepath.Join(t.TempDir(), "control")
	run(t, nil, "dpkg-deb", "-e", deb, control)
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		run(t, nil, "sh", "-n", filepath.Join(control, script))
	}
}
