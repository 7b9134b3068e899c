package contract

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// foreign: the runtime is not davit. What the CRI leaves open, and davit has
// decided, is then told and not failed.
var foreign bool

// differences are davit's own choices that a foreign runtime makes otherwise.
var differences struct {
	sync.Mutex
	lines []string
}

// differs is an error with davit, and a line in the report with a runtime that
// may choose otherwise.
func differs(t *testing.T, format string, args ...any) {
	t.Helper()
	if !foreign {
		t.Errorf(format, args...)
		return
	}
	text := fmt.Sprintf(format, args...)
	t.Log("not as davit:", text)
	differences.Lock()
	defer differences.Unlock()
	differences.lines = append(differences.lines, t.Name()+": "+text)
}

// rows are the contract's: tests and subtests, by name, and what became of them.
var rows struct {
	sync.Mutex
	outcome map[string]outcome
}

type outcome string

const (
	held   outcome = "held"
	broken outcome = "broken"
	left   outcome = "left out" // not served, or not possible here
)

// alone counts the tests that need a davitd of their own.
var alone atomic.Int32

// judged makes a test a row of the contract.
func judged(t *testing.T) {
	t.Cleanup(func() {
		is := held
		switch {
		case t.Failed():
			is = broken
		case t.Skipped():
			is = left
		}
		rows.Lock()
		defer rows.Unlock()
		if rows.outcome == nil {
			rows.outcome = map[string]outcome{}
		}
		rows.outcome[t.Name()] = is
	})
}

// report prints, after everything else and for a runtime that was named, what
// became of the rows, and then the differences. It returns the code to end with.
func report(code int) int {
	if *endpoint == "" || len(rows.outcome) == 0 {
		return code
	}
	named := map[outcome][]string{}
	for _, name := range slices.Sorted(maps.Keys(rows.outcome)) {
		// A test that only has subtests is not a row, unless it is what is broken.
		part, whole := false, rows.outcome[name]
		for other, is := range rows.outcome {
			part = part || strings.HasPrefix(other, name+"/") && (whole != broken || is == broken)
		}
		if !part {
			named[whole] = append(named[whole], name)
		}
	}
	fmt.Fprintf(os.Stderr, "\nthe contract: %d rows held, %d broken, %d left out\n", len(named[held]), len(named[broken]), len(named[left]))
	for _, is := range []outcome{broken, left} {
		for _, name := range named[is] {
			fmt.Fprintf(os.Stderr, "    %s: %s\n", is, name)
		}
	}
	fmt.Fprintf(os.Stderr, "davit's own: %d answers differ where the CRI leaves the choice; %d tests need a davitd of their own\n", len(differences.lines), alone.Load())
	for _, line := range differences.lines {
		fmt.Fprintln(os.Stderr, "   ", line)
	}
	return code
}

// must requires of every runtime an error's code, and all of the given texts in it.
func must(t *testing.T, err error, code codes.Code, texts ...string) {
	t.Helper()
	if wrong := mismatch(err, code, texts); wrong != "" {
		t.Error(wrong)
	}
}

// want requires it of davit, and of others that they refuse what davit refuses.
func want(t *testing.T, err error, code codes.Code, texts ...string) {
	t.Helper()
	if wrong := mismatch(err, code, texts); wrong == "" {
		return
	} else if err == nil {
		t.Error(wrong)
	} else {
		differs(t, "%s", wrong)
	}
}

// prefer requires it of davit alone.
func prefer(t *testing.T, err error, code codes.Code, texts ...string) {
	t.Helper()
	if wrong := mismatch(err, code, texts); wrong != "" {
		differs(t, "%s", wrong)
	}
}

// mismatch says what is wrong with an error; "" if nothing is.
func mismatch(err error, code codes.Code, texts []string) string {
	if status.Code(err) != code {
		return fmt.Sprintf("%v: want code %s", err, code)
	}
	for _, text := range texts {
		if err != nil && !strings.Contains(err.Error(), text) {
			return fmt.Sprintf("%v: does not say %q", err, text)
		}
	}
	return ""
}
