// Command conform runs the CRI conformance suite, critest, against a davitd of
// its own, with images made here and no internet.
//
// It ends with 0 if each spec passed, or failed only for an RPC that davit
// answers Unimplemented to; those are listed by name.
package main

import (
	"context"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/davit-runtime/davit/internal/testkit"
)

func main() {
	critest := flag.String("critest", "", "the critest `program`")
	focus := flag.String("focus", `\[Conformance\]`, "which specs, a pattern")
	// That image's digest is fixed in the suite, so no registry but its own can have it.
	skip := flag.String("skip", "public image with digest should be pulled", "which not, a pattern")
	handler := flag.String("handler", "", "RuntimeClass handler")
	verbose := flag.Bool("v", false, "show what critest prints, and davitd's log")
	flag.Parse()
	if *critest == "" {
		fmt.Fprintln(os.Stderr, "usage: conform -critest PROGRAM")
		os.Exit(2)
	}
	code, inside := testkit.Inside()
	if !inside {
		os.Exit(code)
	}
	args := []string{"-ginkgo.focus=" + *focus, "-runtime-handler=" + *handler}
	if *skip != "" {
		args = append(args, "-ginkgo.skip="+*skip)
	}
	if err := run(*critest, args, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "conform:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(critest string, args []string, verbose bool) (err error) {
	dir, err := os.MkdirTemp("", "davit-conform-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	registry, err := testkit.StartRegistry(dir, "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer registry.Stop()
	if err := pushImages(registry.Host, dir); err != nil {
		return err
	}
	var config strings.Builder
	for _, mirror := range mirrors {
		fmt.Fprintf(&config, "[registries.%q]\nendpoints = [\"http://%s\"]\n", mirror, registry.Host)
	}
	d, err := testkit.StartDaemon(filepath.Join(dir, "davit"), config.String())
	if d != nil {
		defer func() { err = errors.Join(err, d.Close()) }()
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	args = append(args, "-runtime-endpoint=unix://"+d.Socket, "-image-endpoint=unix://"+d.Socket, "-ginkgo.junit-report="+filepath.Join(dir, "junit.xml"), "-ginkgo.no-color")
	cmd := exec.CommandContext(ctx, critest, args...)
	cmd.Dir = dir
	out, runErr := cmd.CombinedOutput()
	if verbose {
		fmt.Printf("%s\n--- davitd\n%s\n", out, d.Log())
	}
	reports, err := filepath.Glob(filepath.Join(dir, "*.xml"))
	if err != nil || len(reports) == 0 {
		return errors.Join(fmt.Errorf("critest left no report:\n%s", out), runErr, err)
	}
	return judge(reports)
}

// A suite is the part of a JUnit report that counts here.
type suite struct {
	Cases []struct {
		Name    string `xml:"name,attr"`
		Status  string `xml:"status,attr"`
		Failure *struct {
			Message string `xml:"message,attr"`
			Text    string `xml:",chardata"`
		} `xml:"failure"`
	} `xml:"testsuite>testcase"`
}

// judge prints the specs that did not pass, and why.
func judge(reports []string) error {
	var passed, missing, failed []string
	for _, file := range reports {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var s suite
		if err := xml.Unmarshal(text, &s); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, c := range s.Cases {
			c.Name = strings.Replace(c.Name, "[It] [k8s.io] ", "[It] ", 1)
			switch {
			case c.Status == "skipped" || !strings.HasPrefix(c.Name, "[It]"):
			case c.Failure == nil:
				passed = append(passed, c.Name)
			case strings.Contains(c.Failure.Message+c.Failure.Text, "Unimplemented"):
				missing = append(missing, c.Name)
			default:
				failed = append(failed, c.Name+"\n        "+strings.Join(strings.Fields(c.Failure.Message+" "+c.Failure.Text), " "))
			}
		}
	}
	for _, list := range []struct {
		title string
		names []string
	}{{"need an RPC that is not there yet", missing}, {"failed", failed}} {
		slices.Sort(list.names)
		fmt.Printf("%d %s\n", len(list.names), list.title)
		for _, name := range list.names {
			fmt.Println("   ", name)
		}
	}
	fmt.Printf("%d passed, %d failed, %d not yet possible\n", len(passed), len(failed), len(missing))
	if len(failed) > 0 || len(passed) == 0 {
		return fmt.Errorf("%d specs failed", len(failed))
	}
	return nil
}
