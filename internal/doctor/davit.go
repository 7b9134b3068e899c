package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

var davitChecks = []Check{
	{Name: "davitd-config", What: "davit's configuration, by davitd's own eyes", run: checkConfig, Faults: []Fault{
		{"davitd-config-invalid", Error, "davitd would not start with its configuration: an unknown key, a wrong value"},
		{"davitd-config-needs-restart", Warning, "davitd was told to reload its configuration, and some of what changed needs a restart"},
	}},
	{Name: "davitd", What: "that davitd, its monitor and its keeper run", run: checkDaemons, Faults: []Fault{
		{"davitd-not-running", Error, "davitd is installed and nobody else is the node's runtime, but it does not run"},
		{"davit-monitor-missing", Error, "davit-monitor is neither beside davitd nor on PATH: davitd will not start"},
		{"davit-monitor-not-running", Error, "davitd runs and its monitor or keeper does not"},
	}},
	{Name: "versions", What: "that davit, davitd and davit-monitor are of one version, on disk and running", run: checkVersions, Faults: []Fault{
		{"version-mismatch", Warning, "davit, davitd and davit-monitor are of different versions, or another davitd runs than is installed"},
		{"program-replaced", Warning, "a daemon still runs a program that was replaced or removed since"},
	}},
	{Name: "unit", What: "that a restart of davitd's systemd unit leaves containers alone", run: checkUnit, Faults: []Fault{
		{"unit-kills-containers", Error, "davit-keeper is in davitd's unit, and its KillMode is not process: systemctl restart davitd ends it"},
		{"tasks-max-low", Warning, "davitd's control group is allowed few processes and threads"},
	}},
	{Name: "limits", What: "limits of davit's daemons", run: checkLimits, Faults: []Fault{
		{"open-files-low", Warning, "davitd may open fewer than 65536 files, which limits the number of containers"},
		{"processes-low", Warning, "davitd's user may have fewer than 4096 processes"},
		{"oom-score-high", Warning, "davit-keeper may be killed before pods when memory is short"},
	}},
}

func checkConfig(l *look) {
	d := l.davit()
	switch {
	case !d.here():
		l.skip("davit is not installed")
	case d.program == "":
		l.unseen("davitd's program", os.ErrPermission)
		l.skip("davitd's program is not to be found")
	case d.err != nil && strings.Contains(d.err.Error(), "permission denied"):
		l.unseen("davit's configuration", fs.ErrPermission)
	case d.err != nil && strings.Contains(d.err.Error(), "not defined: -check"):
		l.skip("%s is older than this davit, and cannot say", d.program)
	case d.err != nil && !errors.As(d.err, new(*Exit)):
		l.unseen(d.program+" --check", d.err)
		l.skip("davitd does not tell its configuration")
	case d.err != nil:
		message := strings.TrimPrefix(strings.ReplaceAll(d.err.Error(), "\n", "; "), "davitd: ")
		l.fault("davitd-config-invalid", "# correct that line, then: "+d.program+" --check && systemctl restart davitd", "%s", message)
	default:
		if a := l.answer(); a.Name == "davit" && len(a.NeedRestart) > 0 && sameSocket(l.endpoint().path(), d.Socket) {
			l.fault("davitd-config-needs-restart", "systemctl restart davitd   # containers run on", "reloaded, but not in force: %s", strings.Join(a.NeedRestart, ", "))
		}
		l.okay("root %s, state %s", d.Root, d.State)
	}
}

func checkDaemons(l *look) {
	d := l.davit()
	if !d.here() {
		l.skip("davit is not installed")
		return
	}
	if path, _ := l.find("davit-monitor", append([]string{filepath.Dir(d.program)}, l.Path...)); path == "" && d.program != "" {
		l.fault("davit-monitor-missing", "install -m 0755 davit-monitor "+filepath.Dir(d.program)+"/   # from the same release as davitd", "there is no davit-monitor beside %s or on PATH", d.program)
	}
	if d.running == nil {
		if sameSocket(l.endpoint().path(), d.Socket) {
			l.fault("davitd-not-running", l.revive(d.Socket), "davitd does not run")
			return
		}
		l.okay("installed, not running; the runtime here is at %s", l.endpoint().Address)
		return
	}
	for _, m := range []struct{ mode, what string }{{"keep", "keeper"}, {"serve", "monitor"}} {
		if _, found := l.monitor(m.mode, d.State); !found {
			l.fault("davit-monitor-not-running", "journalctl -eu davitd; systemctl restart davitd   # it starts them again", "davitd runs (process %d), and its %s does not", d.running.Pid, m.what)
		}
	}
	l.okay("davitd runs (process %d), with monitor and keeper", d.running.Pid)
}

// monitor returns the davit-monitor in a mode that belongs to a state directory.
// Of several keepers it is the monitor's parent: others stand by.
func (l *look) monitor(mode, state string) (best process, found bool) {
	for _, p := range l.processes() {
		if p.Name() != "davit-monitor" || len(p.Args) < 2 || p.Args[1] != mode ||
			filepath.Clean(cmp.Or(p.value("state"), "/run/davit")) != filepath.Clean(state) {
			continue
		}
		if !found || mode == "keep" && l.isParent(p, state) {
			best, found = p, true
		}
	}
	return best, found
}

// isParent reports whether p is the parent of the monitor.
func (l *look) isParent(p process, state string) bool {
	child, found := l.monitor("serve", state)
	return found && strings.Contains(l.text(child.Path("status")), fmt.Sprintf("\nPPid:\t%d\n", p.Pid))
}

// daemons are davitd, its keeper and its monitor, those that run.
func (l *look) daemons() []process {
	d := l.davit()
	var all []process
	if d.running != nil {
		all = append(all, *d.running)
	}
	for _, mode := range []string{"keep", "serve"} {
		if p, found := l.monitor(mode, d.State); found {
			all = append(all, p)
		}
	}
	return all
}

func checkVersions(l *look) {
	d := l.davit()
	if !d.here() {
		l.skip("davit is not installed")
		return
	}
	const update = "# install davit, davitd and davit-monitor of one release, then: systemctl restart davitd (containers run on)"
	own := l.versionOf(d.program)
	monitor, _ := l.find("davit-monitor", append([]string{filepath.Dir(d.program)}, l.Path...))
	for _, program := range []string{d.program, monitor} {
		if v := l.versionOf(program); v != "" && l.Version != "" && v != l.Version {
			l.fault("version-mismatch", update, "davit is %s, %s is %s", l.Version, program, v)
		}
	}
	if a := l.answer(); a.Name == "davit" && own != "" && a.Version != own {
		l.fault("version-mismatch", "systemctl restart davitd   # containers run on", "%s is %s, the davitd that runs is %s", d.program, own, a.Version)
	}
	for _, p := range l.daemons() {
		exe, err := os.Readlink(l.at(p.Path("exe")))
		if err != nil {
			l.unseen("which programs davit's daemons run", err)
			break
		}
		if strings.HasSuffix(exe, " (deleted)") {
			name := strings.Join(p.Args[:min(2, len(p.Args))], " ")
			l.fault("program-replaced", "systemctl restart davitd   # containers run on", "%s (process %d) runs %s", filepath.Base(name), p.Pid, exe)
		}
	}
	l.okay("%s", strings.TrimSpace("davitd "+own))
}

// versionOf returns what one of davit's programs calls its version; empty if it
// does not say.
func (l *look) versionOf(program string) string {
	if program == "" {
		return ""
	}
	out, err := l.Run(l.ctx, nil, program, "--version")
	name, version, ok := strings.Cut(strings.TrimSpace(out), " ")
	if err != nil || !ok || name != filepath.Base(program) {
		return ""
	}
	return version
}

func checkUnit(l *look) {
	d := l.davit()
	if d.running == nil {
		l.skip("davitd does not run")
		return
	}
	unit, folder := l.unitOf(*d.running)
	keeper, found := l.monitor("keep", d.State)
	of, _ := l.unitOf(keeper)
	if found && unit != "" && of == unit {
		if mode := l.unitSetting(unit, "KillMode", "control-group"); mode != "process" && mode != "none" {
			l.fault("unit-kills-containers", fmt.Sprintf("mkdir -p /etc/systemd/system/%[1]s.d\nprintf '[Service]\\nKillMode=process\\n' >/etc/systemd/system/%[1]s.d/kill.conf\nsystemctl daemon-reload", unit),
				"davit-keeper (process %d) is in %s, whose KillMode is %s", keeper.Pid, unit, mode)
		}
	}
	if most, known := l.number(folder + "/pids.max"); known && most < 1024 {
		l.fault("tasks-max-low", fmt.Sprintf("systemctl set-property %s TasksMax=infinity", orUnit(unit)), "%s allows %d processes and threads", folder, most)
	}
	if unit == "" {
		l.okay("davitd is in no unit of systemd's")
		return
	}
	l.okay("%s", unit)
}

func orUnit(unit string) string {
	if unit == "" {
		return "davitd.service"
	}
	return unit
}

// unitOf returns the systemd service that a process is in, and its cgroup's
// folder among pids. Either may be empty.
func (l *look) unitOf(p process) (unit, folder string) {
	c := l.cgroups()
	for line := range strings.Lines(l.text(p.Path("cgroup"))) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for name := range strings.SplitSeq(parts[2], "/") {
			if strings.HasSuffix(name, ".service") {
				unit = name
			}
		}
		switch {
		case parts[1] == "pids" && c.v1["pids"] != "":
			folder = filepath.Join(c.v1["pids"], parts[2])
		case parts[1] == "" && c.layout == "v2":
			folder = filepath.Join(c.unified, parts[2])
		}
	}
	return unit, folder
}

// unitSetting returns what a unit's file and drop-ins set last.
// systemd: systemd.unit(5), unit file load path.
func (l *look) unitSetting(unit, key, def string) string {
	dirs := []string{"/etc/systemd/system/", "/run/systemd/system/", "/usr/local/lib/systemd/system/", "/usr/lib/systemd/system/", "/lib/systemd/system/"}
	var files []string
	for _, dir := range dirs {
		if l.exists(dir + unit) {
			files = append(files, dir+unit)
			break
		}
	}
	for _, dir := range dirs {
		files = append(files, l.glob(dir+unit+".d/*.conf")...)
	}
	for _, file := range files {
		for line := range strings.Lines(l.text(file)) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
				def = strings.TrimSpace(value)
			}
		}
	}
	return def
}

func checkLimits(l *look) {
	d := l.davit()
	if d.running == nil {
		l.skip("davitd does not run")
		return
	}
	for line := range strings.Lines(l.text(d.running.Path("limits"))) {
		for _, least := range []struct {
			row, fault, setting string
			least               int64
		}{
			// The soft limit is what containers begin with: 1024, as programs expect.
			{"Max open files", "open-files-low", "LimitNOFILE=1024:524288", 1 << 16},
			{"Max processes", "processes-low", "LimitNPROC=infinity", 4096},
		} {
			values, ok := strings.CutPrefix(line, least.row)
			f := strings.Fields(values)
			if !ok || len(f) < 2 {
				continue
			}
			if hard, err := strconv.ParseInt(f[1], 10, 64); err == nil && hard < least.least { // else: unlimited
				l.fault(least.fault, fmt.Sprintf("mkdir -p /etc/systemd/system/davitd.service.d\nprintf '[Service]\\n%s\\n' >/etc/systemd/system/davitd.service.d/limits.conf\nsystemctl daemon-reload && systemctl restart davitd", least.setting),
					"%s of davitd: %d; %d are enough", strings.ToLower(least.row), hard, least.least)
			}
		}
	}
	keeper, found := l.monitor("keep", d.State)
	if score, known := l.number(keeper.Path("oom_score_adj")); found && known && score > -900 && l.mayLower(keeper) {
		l.fault("oom-score-high", "choom -n -999 -p $(pidof davitd davit-monitor | tr ' ' ,)   # for good: OOMScoreAdjust=-999 in davitd's unit",
			"oom_score_adj of davit-keeper (process %d) is %d; pods have -997 to 1000", keeper.Pid, score)
	}
	l.okay("open files, processes, and what is killed first when memory is short")
}

// mayLower reports whether a process may lower its oom_score_adj.
// kernel: capability.h, CAP_SYS_RESOURCE is 24.
func (l *look) mayLower(p process) bool {
	for line := range strings.Lines(l.text(p.Path("status"))) {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			return err == nil && caps&(1<<24) != 0
		}
	}
	return false
}
