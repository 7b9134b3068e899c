// Package doctor checks a node: whether what a container runtime and a kubelet
// need is there and agrees, and for each fault its exact name and a fix.
//
// A check looks at the node through a Node, which is files below a root and a
// few functions for what no file tells, so that tests can seed each fault. All
// checks run at once, and none can hold up the others for longer than Limit.
// Nothing on the node is changed; programs are run for their version only.
//
// Nothing here depends on davit's daemon: a node without it, or with another
// runtime, is checked as well. Command davit calls it.
package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Limit is how long one check may take; what has not ended by then is told as
// skipped. A healthy node takes a tenth of a second or two, so this is for what
// hangs, and leaves room for machines that are very slow.
const Limit = 10 * time.Second

// How long the runtime may take to answer, and a program to tell its version.
// Both are shorter than Limit, so that the check that asks can say so.
const (
	askLimit = 3 * time.Second
	runLimit = 6 * time.Second
)

// A Level is how a check came out.
type Level string

// The levels, from the best to the worst.
const (
	Skipped Level = "skipped" // it does not apply, or could not be seen; why is told
	OK      Level = "ok"
	Warning Level = "warning" // works, but not as it should, or not for long
	Error   Level = "error"   // pods cannot run, or a kubelet will not
)

// A Fault is what a check may find. Its name is stable: scripts may test for it.
type Fault struct {
	Name  string
	Level Level  // Warning or Error; a finding may be less grave than that, and says so
	What  string // for the documentation
}

// A Check looks at one thing.
type Check struct {
	Name   string
	What   string // for the documentation
	Faults []Fault

	run func(*look)
}

// A Finding is one fault that is there.
type Finding struct {
	Fault   string `json:"fault"`
	Level   Level  `json:"level"`
	Message string `json:"message"`
	Fix     string `json:"fix"` // to paste; may have several lines
}

// A Result is how one check came out.
type Result struct {
	Check    string    `json:"check"`
	Level    Level     `json:"level"`              // that of the worst finding
	Message  string    `json:"message"`            // what is in order, or why it was skipped
	Findings []Finding `json:"findings,omitempty"` // as they were found
	Unseen   []string  `json:"unseen,omitempty"`   // what could not be looked at, and why
}

// A Report is how all checks came out, in the order of Checks.
type Report struct {
	Schema     int      `json:"schema"` // 1; grows when a field changes its meaning or goes
	Node       string   `json:"node"`   // its hostname
	Endpoint   Endpoint `json:"endpoint"`
	Images     Endpoint `json:"images"` // the same unless they are served elsewhere
	OK         int      `json:"ok"`     // how many checks
	Warnings   int      `json:"warnings"`
	Errors     int      `json:"errors"`
	Skipped    int      `json:"skipped"`
	TookMillis int64    `json:"tookMillis"`
	Checks     []Result `json:"checks"`
}

// Checks returns all checks, in the order in which they are told.
func Checks() []Check {
	return slices.Concat(hostChecks, kernelChecks, cgroupChecks, sysctlChecks, diskChecks,
		kubeletChecks, socketChecks, cniChecks, ociChecks, davitChecks, storeChecks, deviceChecks)
}

// Run runs all checks at once. It returns within Limit and a little, and
// earlier if ctx ends.
func Run(ctx context.Context, n *Node) *Report { return run(ctx, n, Limit) }

func run(ctx context.Context, n *Node, limit time.Duration) *Report {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	f := n.facts(ctx)
	checks := Checks()
	type done struct {
		i int
		Result
	}
	results := make(chan done, len(checks))
	for i, c := range checks {
		// A system call on a dead mount cannot be interrupted, so nobody can wait
		// for this goroutine: the check is given up, and the process soon ends.
		go func() { results <- done{i, c.on(f)} }()
	}
	r := &Report{Schema: 1, Checks: make([]Result, len(checks))}
	for i, c := range checks {
		r.Checks[i] = Result{Check: c.Name, Level: Skipped, Message: fmt.Sprintf("not done after %v: something it looks at does not answer", limit)}
	}
	for range checks {
		select {
		case d := <-results:
			r.Checks[d.i] = d.Result
			continue
		case <-ctx.Done():
		}
		break
	}
	r.count()
	r.Node = f.text("/proc/sys/kernel/hostname")
	r.Endpoint, r.Images = soon(f.endpoint), soon(f.images)
	r.TookMillis = time.Since(begun).Milliseconds()
	return r
}

// soon returns what f returns, or nothing if that takes time.
func soon[T any](f func() T) (v T) {
	c := make(chan T, 1)
	go func() { c <- f() }()
	select {
	case v = <-c:
	case <-time.After(100 * time.Millisecond):
	}
	return v
}

func (r *Report) count() {
	for _, c := range r.Checks {
		switch c.Level {
		case OK:
			r.OK++
		case Warning:
			r.Warnings++
		case Error:
			r.Errors++
		case Skipped:
			r.Skipped++
		}
	}
}

// A look is one check under way.
type look struct {
	*facts
	check   *Check
	result  Result
	skipped string
}

func (c Check) on(f *facts) Result {
	l := &look{facts: f, check: &c, result: Result{Check: c.Name, Level: OK}}
	c.run(l)
	r := &l.result
	for _, found := range r.Findings {
		if found.Level == Error || r.Level == OK {
			r.Level = found.Level
		}
	}
	if len(r.Findings) == 0 && l.skipped != "" {
		r.Level, r.Message = Skipped, l.skipped
	}
	return *r
}

// okay says what is in order.
func (l *look) okay(format string, args ...any) {
	if l.result.Message != "" {
		l.result.Message += "; "
	}
	l.result.Message += fmt.Sprintf(format, args...)
}

// skip says why the check does not apply or cannot be done.
func (l *look) skip(format string, args ...any) { l.skipped = fmt.Sprintf(format, args...) }

// unseen says what could not be looked at, and why.
func (l *look) unseen(what string, err error) {
	l.result.Unseen = append(l.result.Unseen, fmt.Sprintf("%s: %v", what, plain(err)))
}

// fault tells one of the check's faults; fix is to paste.
func (l *look) fault(name, fix, format string, args ...any) {
	l.found(name, "", fix, format, args...)
}

// warn is fault where it is less grave than usual.
func (l *look) warn(name, fix, format string, args ...any) {
	l.found(name, Warning, fix, format, args...)
}

func (l *look) found(name string, level Level, fix, format string, args ...any) {
	for _, f := range l.check.Faults {
		if f.Name == name {
			if level == "" {
				level = f.Level
			}
			message := fmt.Sprintf(format, args...)
			l.result.Findings = append(l.result.Findings, Finding{Fault: name, Level: level, Message: message, Fix: strings.TrimSpace(fix)})
			return
		}
	}
	panic("doctor: check " + l.check.Name + " has no fault " + name)
}
