package nri

import (
	"context"
	"sync"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
)

// Evictions are part of the protocol, but the library drops them. They are
// picked up where its messages pass.

// A listener collects the evictions that belong to one call.
type listener struct {
	mu        sync.Mutex
	evictions []Eviction
}

type listenerKey struct{}

// overhear returns a context that a call to plugins is to be made with, and
// what will have collected their evictions.
func overhear(ctx context.Context) (context.Context, *listener) {
	l := &listener{}
	return context.WithValue(ctx, listenerKey{}, l), l
}

func overheard(ctx context.Context) *listener {
	l, _ := ctx.Value(listenerKey{}).(*listener)
	return l
}

func (l *listener) add(evict []*api.ContainerEviction) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range evict {
		l.evictions = append(l.evictions, Eviction{ID: e.GetContainerId(), Reason: e.GetReason()})
	}
}

func (l *listener) all() []Eviction {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.evictions
}

// overhearAnswer is between the library and a plugin that answers a hook.
func overhearAnswer(ctx context.Context, request *ttrpc.Request, response *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	err := invoke(ctx, request, response)
	l := overheard(ctx)
	if err != nil || l == nil {
		return err
	}
	switch request.GetMethod() {
	case "CreateContainer":
		var m api.CreateContainerResponse
		if proto.Unmarshal(response.GetPayload(), &m) == nil {
			l.add(m.GetEvict())
		}
	case "UpdateContainer":
		var m api.UpdateContainerResponse
		if proto.Unmarshal(response.GetPayload(), &m) == nil {
			l.add(m.GetEvict())
		}
	}
	return nil
}

// overhearRequest is between a plugin that asks on its own and the library.
func overhearRequest(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	ctx, l := overhear(ctx)
	return method(ctx, func(m any) error {
		err := unmarshal(m)
		if request, ok := m.(*api.UpdateContainersRequest); ok && err == nil {
			l.add(request.GetEvict())
		}
		return err
	})
}
