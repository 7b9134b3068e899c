// Package calls remembers what calls of the CRI are under way, and how those
// went that failed or were slow: for people who ask why.
//
// It owns that memory, which is bounded, and serves it as api/call/v1. Nothing is
// written down, and nothing of a request is kept but what it is about. Package
// cri tells it of every call; it never blocks one.
package calls

import (
	"container/list"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/davit-runtime/davit/internal/span"
)

// Limits of the memory. A call takes about 1 kB, 12 at most: see span.Trace.
const (
	maxKept    = 512
	maxError   = 2 << 10
	minIDChars = 3 // of an ID's beginning, to mean it
)

// A Subject is what a call is about, as far as that is known.
type Subject struct {
	Namespace, Pod, PodID  string
	Container, ContainerID string
	Image                  string
}

// A Call is one call, as it is by now.
type Call struct {
	Method  string // "RunPodSandbox"
	Subject Subject
	Began   time.Time
	Took    time.Duration // 0: it is under way
	Code    string        // of gRPC
	Err     string        // empty if it was slow only
	Steps   []span.Part

	Times     int       // how often that happened
	First     time.Time // since when
	Succeeded time.Time // the same call later; zero if it has not
}

// A key is shared by calls of which the last is remembered. A pod that is made
// again has another ID, and mostly the same name.
type key struct {
	method                    string
	namespace, pod, container string
	id                        string // where there is no name
	failed                    bool
}

type kept struct {
	key   key
	call  Call // without Steps
	trace *span.Trace
}

// Calls is the memory. Safe for concurrent use.
type Calls struct {
	mu    sync.Mutex
	under map[*Running]struct{}
	ended map[key]*list.Element // of order
	order *list.List            // of *kept, the newest first
}

// New returns an empty memory.
func New() *Calls {
	return &Calls{under: map[*Running]struct{}{}, ended: map[key]*list.Element{}, order: list.New()}
}

// A Running is a call under way.
type Running struct {
	calls *Calls
	call  Call // guarded by calls.mu
	trace *span.Trace
}

// Begin notes a call whose steps t has. The caller calls End.
func (c *Calls) Begin(method string, s Subject, t *span.Trace) *Running {
	r := &Running{calls: c, call: Call{Method: method, Subject: s, Began: time.Now()}, trace: t}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.under[r] = struct{}{}
	return r
}

// Slow reports whether the call has taken so long that it is worth remembering.
func (r *Running) Slow() bool { return time.Since(r.call.Began) >= span.Slow }

// End notes how the call ended, and what it is about as it is known by now. An
// empty text is success; one that was quick leaves nothing.
func (r *Running) End(s Subject, code, text string) {
	c, call := r.calls, r.call
	call.Subject, call.Code, call.Err = s, code, strings.Clone(text[:min(len(text), maxError)])
	call.Took = max(time.Since(call.Began), 1)
	k := keyOf(call)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.under, r)
	if text == "" {
		k.failed = true
		if e := c.ended[k]; e != nil {
			e.Value.(*kept).call.Succeeded = call.Began.Add(call.Took)
		}
		k.failed = false
		if call.Took < span.Slow {
			return
		}
	}
	call.Times, call.First = 1, call.Began
	if e := c.ended[k]; e != nil {
		before := e.Value.(*kept).call
		call.Times, call.First = before.Times+1, before.First
		c.order.Remove(e)
	}
	c.ended[k] = c.order.PushFront(&kept{k, call, r.trace})
	if c.order.Len() > maxKept {
		delete(c.ended, c.order.Remove(c.order.Back()).(*kept).key)
	}
}

func keyOf(c Call) key {
	s := c.Subject
	k := key{method: c.Method, namespace: s.Namespace, pod: s.Pod, container: s.Container, failed: c.Err != ""}
	switch {
	case s.Pod == "" && s.ContainerID != "":
		k.id = s.ContainerID
	case s.Pod == "" && s.PodID != "":
		k.id = s.PodID
	case c.Method == "PullImage":
		k.id = s.Image
	}
	return k
}

// Of returns the calls about ref, those under way first, the oldest of them
// first, then the others, the newest first. ref is a pod's name, namespace/name
// or the beginning of its ID, a container's name or the beginning of its ID, or
// an image; empty are all. container, unless empty, leaves only those about the
// container of that name.
func (c *Calls) Of(ref, container string) []Call {
	want := func(s Subject) bool { return s.is(ref) && (container == "" || s.Container == container) }
	type found struct {
		call  Call
		trace *span.Trace
	}
	var under, ended []found
	c.mu.Lock()
	for r := range c.under {
		if want(r.call.Subject) {
			under = append(under, found{r.call, r.trace})
		}
	}
	for e := c.order.Front(); e != nil; e = e.Next() {
		if k := e.Value.(*kept); want(k.call.Subject) {
			ended = append(ended, found{k.call, k.trace})
		}
	}
	c.mu.Unlock()
	slices.SortFunc(under, func(a, b found) int { return a.call.Began.Compare(b.call.Began) })
	all := make([]Call, 0, len(under)+len(ended))
	for _, f := range append(under, ended...) {
		f.call.Steps = f.trace.Steps()
		all = append(all, f.call)
	}
	return all
}

func (s Subject) is(ref string) bool {
	if ref == "" {
		return true
	}
	if s.Pod != "" && (ref == s.Pod || ref == s.Namespace+"/"+s.Pod) || ref == s.Container || ref == s.Image {
		return true
	}
	return len(ref) >= minIDChars && (strings.HasPrefix(s.PodID, ref) || strings.HasPrefix(s.ContainerID, ref))
}
