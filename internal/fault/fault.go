// Package fault gives errors a kind where they are seen, so that one place at
// the surface can turn kinds into gRPC codes.
//
// It imports nothing of davit and knows nothing of gRPC.
package fault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
)

// A Kind says what sort of trouble an error is. The zero value is Internal.
type Kind uint8

const (
	Internal      Kind = iota // davit's own fault, or one nobody classified
	Invalid                   // the request is malformed, whatever the state
	NotFound                  // the thing named does not exist
	Exists                    // the name is taken by something else
	Precondition              // right request, wrong state
	Unavailable               // try again later: a part is down, hung or starting
	Unimplemented             // davit, or the OCI runtime, cannot do this at all
	Exhausted                 // no space, no addresses, a message too large
	Deadline                  // a time limit ran out
	Canceled                  // the caller went away
	Denied                    // credentials refused
	Unknown                   // a failure whose text is the contract: CRI, PullImage
)

// String returns the kind's name as it appears in logs.
func (k Kind) String() string {
	names := [...]string{
		"internal", "invalid", "not found", "exists", "precondition", "unavailable",
		"unimplemented", "exhausted", "deadline", "canceled", "denied", "unknown",
	}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

type fault struct {
	kind Kind
	op   string
	err  error
}

func (f *fault) Error() string {
	if f.op == "" {
		return f.err.Error()
	}
	return f.op + ": " + f.err.Error()
}

func (f *fault) Unwrap() error { return f.err }

// New returns an error of the given kind. op names the operation, as in
// "network.Attach"; empty adds nothing to the text. The format takes %w.
func New(kind Kind, op, format string, args ...any) error {
	return &fault{kind: kind, op: op, err: fmt.Errorf(format, args...)}
}

// KindOf returns the kind of the outermost classified error in err's chain.
// Context errors count as Canceled and Deadline, what the kernel has no more
// of as Exhausted, wherever they stand unwrapped by a kind, or by Internal
// alone. It returns Internal for any other unclassified error.
func KindOf(err error) Kind {
	var f *fault
	switch {
	case errors.As(err, &f) && f.kind != Internal:
		return f.kind
	case slices.ContainsFunc(exhausted, func(e error) bool { return errors.Is(err, e) }):
		return Exhausted
	case f != nil:
		return f.kind
	case errors.Is(err, context.DeadlineExceeded):
		return Deadline
	case errors.Is(err, context.Canceled):
		return Canceled
	}
	return Internal
}

var exhausted = []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM}

// Is reports whether err is non-nil and of the given kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }

// A Program is an error of a program that was run: the error's text and kind are
// Err's, and beside it stands what was run.
type Program struct {
	Line string // the command line
	Said string // the end of what it wrote to standard error, or its log
	Err  error
}

func (p *Program) Error() string { return p.Err.Error() }
func (p *Program) Unwrap() error { return p.Err }

// Limits of a Program's texts, in bytes.
const maxLine, maxSaid = 1 << 10, 2 << 10

// Ran adds to err, unless that is nil, which program it is of and what that has said.
func Ran(err error, line []string, said ...[]byte) error {
	if err == nil {
		return nil
	}
	command, text := strings.Join(line, " "), bytes.TrimSpace(bytes.Join(said, []byte("\n")))
	return &Program{
		Line: printable(command[:min(len(command), maxLine)]), Said: printable(string(text[max(0, len(text)-maxSaid):])), Err: err,
	}
}

// printable replaces what a terminal might obey, and what is no UTF-8.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
}
