// Package crifake is a container runtime in memory, for tests of what calls
// one. It answers on real Unix sockets, with any versions of the CRI, one
// service or both; it can fail any call, keep it waiting, vanish and come back
// with more or fewer versions. Pods, containers and images have their life
// cycles, events and logs; no process is ever started.
//
//	r := crifake.New()
//	s, err := r.Listen(filepath.Join(dir, "cri.sock"), crifake.V1())
//	...
//	defer s.Close()
//	r.Fail("PullImage", status.Error(codes.Unknown, "RegistryUnavailable: no route"))
//	s.Vanish()
//	err = s.Return(crifake.V1alpha2())
//
// A container does what its command says: ["exit", "3"] ends at once with that
// code; anything else runs until it is stopped, or until Exit. A started
// container writes a line or two to its log. A command run in one says what it
// was; ["exit", "3"] ends with that code.
package crifake

import (
	"context"
	"maps"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/criclient"
)

// A Runtime is the state behind any number of sockets. Its methods may be
// called at any time, from several goroutines.
type Runtime struct {
	mu       sync.Mutex
	calls    []Call
	hooks    map[string]Hook
	counters map[string]int
	pods     []*pod
	cons     []*container
	images   []*runtimeapi.Image
	watchers map[chan *runtimeapi.ContainerEventResponse]bool

	conditions map[string]*runtimeapi.RuntimeCondition
	info       map[string]string
	streamURL  string
	chunk      int
	silent     bool // of subscriptions
}

// New returns a runtime that is ready and has nothing.
func New() *Runtime {
	r := &Runtime{
		hooks: map[string]Hook{}, counters: map[string]int{}, watchers: map[chan *runtimeapi.ContainerEventResponse]bool{},
		conditions: map[string]*runtimeapi.RuntimeCondition{}, streamURL: "http://127.0.0.1:1", chunk: 100,
	}
	r.SetCondition(runtimeapi.RuntimeReady, true, "", "")
	r.SetCondition(runtimeapi.NetworkReady, true, "", "")
	return r
}

// A Call is one that was received, whatever was answered.
type Call struct {
	Version criclient.Version
	Service criclient.Service
	Method  string        // "RunPodSandbox"
	Request proto.Message // what was sent
}

// Calls returns the calls received, in order: those of methods, or all.
func (r *Runtime) Calls(methods ...string) []Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Call
	for _, c := range r.calls {
		fits := len(methods) == 0
		for _, m := range methods {
			fits = fits || m == c.Method || m == c.path()
		}
		if fits {
			out = append(out, c)
		}
	}
	return out
}

func (c Call) path() string {
	return "/runtime." + string(c.Version) + "." + string(c.Service) + "/" + c.Method
}

// A Hook sees a call before it is carried out. What it returns, unless nil,
// is the answer. It may block; ctx ends when the caller gives up.
type Hook func(ctx context.Context, c Call) error

// On makes hook see the calls of method: "Version" means those of all versions
// and services, "/runtime.v1.RuntimeService/Version" that one. Nil takes the
// hook away. The longer name wins.
func (r *Runtime) On(method string, hook Hook) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if hook == nil {
		delete(r.hooks, method)
	} else {
		r.hooks[method] = hook
	}
}

// Fail answers method with err, which should be a gRPC status; nil mends it.
func (r *Runtime) Fail(method string, err error) {
	if err == nil {
		r.On(method, nil)
		return
	}
	r.On(method, func(context.Context, Call) error { return err })
}

// Delay makes calls of method take d longer.
func (r *Runtime) Delay(method string, d time.Duration) {
	r.On(method, func(ctx context.Context, _ Call) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

// Hold keeps calls of method waiting until release is called, or until their
// callers give up.
func (r *Runtime) Hold(method string) (release func()) {
	open := make(chan struct{})
	r.On(method, func(ctx context.Context, _ Call) error {
		select {
		case <-open:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return sync.OnceFunc(func() {
		close(open)
		r.On(method, nil)
	})
}

// before notes a call and asks its hook.
func (r *Runtime) before(ctx context.Context, path string, request any) error {
	service, method, _ := strings.Cut(strings.TrimPrefix(path, "/runtime."), "/")
	version, service, _ := strings.Cut(service, ".")
	c := Call{Version: criclient.Version(version), Service: criclient.Service(service), Method: method}
	if m, ok := request.(proto.Message); ok {
		c.Request = proto.Clone(m)
	}
	r.mu.Lock()
	r.calls = append(r.calls, c)
	hook := r.hooks[path]
	if hook == nil {
		hook = r.hooks[method]
	}
	r.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(ctx, c)
}

func (r *Runtime) unary(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	path, _ := grpc.Method(ctx) // generated code has the name of v1 in info
	if err := r.before(ctx, path, request); err != nil {
		return nil, err
	}
	return next(ctx, request)
}

func (r *Runtime) stream(server any, s grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return next(server, &noted{s, r, info.FullMethod})
}

// noted is a stream whose request is seen as it is received.
type noted struct {
	grpc.ServerStream
	runtime *Runtime
	path    string
}

func (n *noted) RecvMsg(m any) error {
	if err := n.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return n.runtime.before(n.Context(), n.path, m)
}

// SetCondition sets what Status says of one condition, runtimeapi.NetworkReady
// for example, or one of a runtime's own.
func (r *Runtime) SetCondition(kind string, ok bool, reason, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conditions[kind] = &runtimeapi.RuntimeCondition{Type: kind, Status: ok, Reason: reason, Message: message}
}

// SetInfo sets what pods and containers tell if they are asked verbosely.
func (r *Runtime) SetInfo(info map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.info = maps.Clone(info)
}

// SetStreamURL sets where exec, attach and port-forward are: Exec answers with
// url + "/exec/" and a token.
func (r *Runtime) SetStreamURL(url string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.streamURL = url
}

// SetChunk sets how many items the parts of streamed lists have, 100 at first.
func (r *Runtime) SetChunk(items int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.chunk = max(items, 1)
}

// SetSilent makes subscriptions to events unconfirmed, as those of some
// runtimes are: nothing is heard before the first event.
func (r *Runtime) SetSilent(silent bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.silent = silent
}
