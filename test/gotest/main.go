// Command gotest runs `go test` and prints what matters: each package's
// result, the output of what failed, and one closing line for everything.
//
//	gotest [-skips FILE] -- ARGUMENTS [-- ARGUMENTS]...
//
// Each group of ARGUMENTS is one run of `go test`. What tests that pass log as
// "figure: …" is shown. A skipped test is a
// failure, unless FILE has a line "PATTERN  reason" whose pattern matches
// "package.Test": a test that silently stops running protects nothing.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
		os.Exit(1)
	}
}

// An event is one line of `go test -json`; see `go doc test2json`.
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

// totals is what a whole run came to.
type totals struct {
	passed, failed, skipped int
	allowed                 []skip
	used                    map[string]bool
	failures                []string
}

type skip struct{ pattern, reason string }

func run(args []string, out io.Writer) error {
	t := &totals{used: map[string]bool{}}
	if len(args) >= 2 && args[0] == "-skips" {
		if err := t.readSkips(args[1]); err != nil {
			return err
		}
		args = args[2:]
	}
	if len(args) == 0 || args[0] != "--" {
		return errors.New("usage: gotest [-skips FILE] -- ARGUMENTS [-- ARGUMENTS]")
	}
	start := time.Now()
	for len(args) > 0 {
		args = args[1:]
		end := slices.Index(args, "--")
		if end < 0 {
			end = len(args)
		}
		if err := t.goTest(args[:end], out); err != nil {
			return err
		}
		args = args[end:]
	}
	return t.close(out, time.Since(start))
}

// close prints what a person looks for first at the end of the output.
func (t *totals) close(out io.Writer, took time.Duration) error {
	fmt.Fprintf(out, "\ntook %s\n", took.Round(time.Second))
	for _, f := range t.failures {
		fmt.Fprintln(out, "FAILED", f)
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
	if t.failed > 0 {
		return fmt.Errorf("%d failed", t.failed)
	}
	if t.passed == 0 {
		return fmt.Errorf("no test ran")
	}
	return nil
}

// readSkips reads the list of tests that may be skipped.
func (t *totals) readSkips(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		pattern, reason, found := strings.Cut(line, " ")
		if _, err := path.Match(pattern, ""); err != nil || !found {
			return fmt.Errorf("%s: %q is not “PATTERN reason”", file, line)
		}
		t.allowed = append(t.allowed, skip{pattern, strings.TrimSpace(reason)})
	}
	return s.Err()
}

// goTest runs `go test -json` once and prints as it goes.
func (t *totals) goTest(args []string, out io.Writer) error {
	fmt.Fprintln(out, "\n$ go test", strings.Join(args, " "))
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	before := t.failed
	output := map[string]*strings.Builder{} // of each test and package that has not ended
	lines := bufio.NewScanner(pipe)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Fprintln(out, lines.Text())
			continue
		}
		t.event(e, output, out)
	}
	if err := cmd.Wait(); err != nil && t.failed == before {
		t.failed++
		t.failures = append(t.failures, fmt.Sprintf("go test %s: %v", strings.Join(args, " "), err))
	}
	return lines.Err()
}

func (t *totals) event(e event, output map[string]*strings.Builder, out io.Writer) {
	name := path.Base(e.Package)
	if _, below, found := strings.Cut(e.Package, "/davit/"); found {
		name = below
	}
	key := name
	if e.Test != "" {
		key = name + "." + e.Test
	}
	switch e.Action {
	case "output":
		if output[key] == nil {
			output[key] = &strings.Builder{}
		}
		output[key].WriteString(e.Output)
		return
	case "build-output":
		fmt.Fprint(out, e.Output)
		return
	case "pass", "fail", "skip":
	default:
		return
	}
	text := ""
	if b := output[key]; b != nil {
		text = b.String()
	}
	delete(output, key)
	if e.Test == "" {
		t.packageEnded(e, name, text, out)
		return
	}
	switch e.Action {
	case "pass":
		t.passed++
		for line := range strings.Lines(text) {
			if _, figure, found := strings.Cut(line, ": figure: "); found {
				fmt.Fprintf(out, "      %s: %s", key, figure)
			}
		}
	case "fail":
		t.failed++
		t.failures = append(t.failures, key)
		fmt.Fprint(out, text)
	case "skip":
		t.skip(key, text, out)
	}
}

func (t *totals) packageEnded(e event, name, text string, out io.Writer) {
	switch {
	case e.Action == "skip": // no test files
	case e.Action == "fail":
		fmt.Fprint(out, text)
		fmt.Fprintf(out, "FAIL  %-28s %6.1f s\n", name, e.Elapsed)
		if !slices.ContainsFunc(t.failures, func(f string) bool { return strings.HasPrefix(f, name+".") }) {
			t.failed++ // it does not build, or ended by itself
			t.failures = append(t.failures, name)
		}
	default:
		fmt.Fprintf(out, "ok    %-28s %6.1f s\n", name, e.Elapsed)
	}
}

func (t *totals) skip(key, text string, out io.Writer) {
	for _, s := range t.allowed {
		if ok, _ := path.Match(s.pattern, strings.ReplaceAll(key, "/", ":")); ok {
			t.skipped++
			if !t.used[s.pattern] {
				t.used[s.pattern] = true
				fmt.Fprintf(out, "skip  %s: %s\n", key, s.reason)
			}
			return
		}
	}
	t.failed++
	t.failures = append(t.failures, key+" was skipped and is not on the list")
	fmt.Fprint(out, text)
}
