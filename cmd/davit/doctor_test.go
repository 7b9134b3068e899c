package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/davit-runtime/davit/cmd/davit/console"
	"github.com/davit-runtime/davit/internal/doctor"
	"github.com/davit-runtime/davit/internal/endpoint"
)

func TestPrintReport(t *testing.T) {
	var out bytes.Buffer
	a := app{&console.Console{Out: &out}}
	err := a.printReport(&doctor.Report{
		Node: "node1", Endpoint: doctor.Endpoint{Address: "unix:///run/davit/davit.sock", From: "test"}, OK: 1, Errors: 1, Skipped: 2, TookMillis: 340,
		Checks: []doctor.Result{
			{Check: "kernel", Level: doctor.OK, Message: "Linux 6.12", Unseen: []string{"the rest: permission denied"}},
			{Check: "swap", Level: doctor.Error, Message: "left out", Findings: []doctor.Finding{{Fault: "swap-on", Level: doctor.Error, Message: "swap is on", Fix: "swapoff -a\n# for good"}}},
			{Check: "unit", Level: doctor.Skipped, Message: "davitd does not run"},
			{Check: "limits", Level: doctor.Skipped, Message: "davitd does not run"},
		},
	})
	const want = `ok       kernel  Linux 6.12
                 not seen: the rest: permission denied
error    swap    swap-on: swap is on
                   swapoff -a
                   # for good
skipped  unit, limits: davitd does not run

node1 at unix:///run/davit/davit.sock: 1 ok, 0 warnings, 1 errors, 2 skipped, in 0.3 s
`
	if err != nil || out.String() != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out.String(), want)
	}
}

// The command ends with 1 exactly if there are errors, or warnings and --strict.
func TestDoctor(t *testing.T) {
	s := newShell(t)
	for _, strict := range []bool{false, true} {
		args := []string{"--endpoint", s.socket.Path(), "doctor"}
		if strict {
			args = append(args, "--strict")
		}
		var out, errOut bytes.Buffer
		code := run(args, strings.NewReader(""), &out, &errOut)
		lines := "\n" + out.String()
		bad := strings.Contains(lines, "\nerror ") || strict && strings.Contains(lines, "\nwarning ")
		if want := map[bool]int{false: 0, true: 1}[bad]; code != want || errOut.Len() > 0 {
			t.Errorf("strict %v: exit code %d, want %d\n%s%s", strict, code, want, out.String(), errOut.String())
		}
		if !strings.Contains(out.String(), s.socket.Path()) {
			t.Errorf("the endpoint is not told:\n%s", out.String())
		}
	}
	s.davit(1, "", "doctor", "-o", "yaml")
	s.has(s.errOut, "only json is known")
}

// It looks at what the other commands would talk to: flags, then variables,
// then the file that CRI_CONFIG_FILE names.
func TestDoctorIsTold(t *testing.T) {
	s := newShell(t)
	s.write("crictl.yaml", "runtime-endpoint: /c.sock\nimage-endpoint: /ci.sock\n")
	file := map[string]string{endpoint.CrictlEnv: filepath.Join(s.dir, "crictl.yaml")}
	both := map[string]string{endpoint.CrictlEnv: file[endpoint.CrictlEnv], endpoint.Env: "/e.sock", endpoint.ImageEnv: "unix:///ei.sock"}
	for _, c := range []struct {
		env             map[string]string
		args            []string
		runtime, images doctor.Endpoint
	}{
		{file, nil, doctor.Endpoint{Address: "unix:///c.sock", From: file[endpoint.CrictlEnv] + ":1"}, doctor.Endpoint{Address: "unix:///ci.sock", From: file[endpoint.CrictlEnv] + ":2"}},
		{both, nil, doctor.Endpoint{Address: "unix:///e.sock", From: endpoint.Env}, doctor.Endpoint{Address: "unix:///ei.sock", From: endpoint.ImageEnv}},
		{both, []string{"--endpoint=/f.sock", "--image-endpoint=/fi.sock"}, doctor.Endpoint{Address: "unix:///f.sock", From: endpoint.Flag}, doctor.Endpoint{Address: "unix:///fi.sock", From: endpoint.ImageFlag}},
	} {
		var out, errOut bytes.Buffer
		a := app{&console.Console{In: strings.NewReader(""), Out: &out, Err: &errOut, Node: "/", Env: func(name string) string { return c.env[name] }}}
		a.run(append(c.args, "doctor", "-o", "json"))
		var r doctor.Report
		if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Endpoint != c.runtime || r.Images != c.images {
			t.Errorf("%v %v: %+v, %+v (%v)\n%s", c.env, c.args, r.Endpoint, r.Images, err, errOut.String())
		}
	}
}
