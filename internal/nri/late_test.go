package nri

import (
	"context"
	"testing"

	"github.com/containerd/nri/pkg/api"
)

// A nobody knows nothing, and fails the test when it is asked for something.
type nobody struct{ t *testing.T }

func (nobody) Known() ([]Pod, []Container) { return nil, nil }

func (n nobody) Apply(context.Context, Answer) []Update {
	n.t.Error("a change is begun though Run has ended")
	return nil
}

// What a plugin that joins asks for is not begun once nobody waits for it.
func TestJoinsTooLate(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	p := New(Config{})
	p.node, p.ctx = nobody{t}, ctx
	err := p.synchronize(t.Context(), func(context.Context, []*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error) {
		end()
		p.finish()
		u := &api.ContainerUpdate{ContainerId: "c"}
		u.SetLinuxCPUShares(5)
		return []*api.ContainerUpdate{u}, nil
	})
	p.pending.Wait()
	if err == nil {
		t.Error("the plugin is told that it has joined")
	}
}
