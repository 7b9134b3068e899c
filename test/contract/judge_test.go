package contract

import (
	"fmt"
	"os"
	"strings"
	"sync"
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

// report prints the differences after everything else, and returns the code to
// end with.
func report(code int) int {
	if len(differences.lines) > 0 {
		fmt.Fprintf(os.Stderr, "\n%d answers differ from davit's where the CRI leaves the choice:\n", len(differences.lines))
		for _, line := range differences.lines {
			fmt.Fprintln(os.Stderr, "   ", line)
		}
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
