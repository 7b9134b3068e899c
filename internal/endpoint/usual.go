package endpoint

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/davit-runtime/davit/criclient"
)

// A Socket is one that a runtime usually serves.
type Socket struct {
	Path, Runtime, Unit string // Unit is systemd's name for its service
}

// Davit is the first of Sockets: davitd's, unless it is configured otherwise.
const Davit = "/run/davit/davit.sock"

// Sockets are those of the runtimes that kubeadm and crictl know, and davit's.
func Sockets() []Socket {
	return []Socket{
		{Davit, "davit", "davitd"},
		{"/run/containerd/containerd.sock", "containerd", "containerd"},
		{"/run/crio/crio.sock", "CRI-O", "crio"},
		{"/run/cri-dockerd.sock", "cri-dockerd", "cri-docker"},
		{"/run/k3s/containerd/containerd.sock", "k3s's containerd", "k3s"},
	}
}

// Setting is s as what it is: a guess.
func (s Socket) Setting() Setting {
	return Setting{"unix://" + s.Path, s.Runtime + "'s usual socket"}
}

// probeLimit is how long several programs may take to say whether they serve
// the CRI.
const probeLimit = 2 * time.Second

// usual returns the one runtime that answers at a usual socket. places are
// those that were looked at before.
func (s Search) usual(ctx context.Context, places []Place) (Setting, error) {
	var answering []Socket
	var files []os.FileInfo
	none := &NotFoundError{Places: places}
	for _, socket := range Sockets() {
		path := filepath.Join(s.Root, socket.Path)
		if err := criclient.Reach(ctx, path); err != nil {
			if ctx.Err() != nil {
				return Setting{}, ctx.Err()
			}
			none.Denied = none.Denied || errors.Is(err, fs.ErrPermission)
			none.Places = append(none.Places, Place{socket.Path, problem(err)})
			continue
		}
		if info, err := os.Stat(path); err == nil {
			if slices.ContainsFunc(files, func(f os.FileInfo) bool { return os.SameFile(f, info) }) {
				continue // the same by another name
			}
			files = append(files, info)
		}
		answering = append(answering, socket)
	}
	if len(answering) > 1 {
		answering = s.ofRuntimes(ctx, answering, none)
	}
	switch len(answering) {
	case 0:
		return Setting{}, none
	case 1:
		return answering[0].Setting(), nil
	}
	return Setting{}, &AmbiguousError{answering}
}

// ofRuntimes returns those of sockets whose programs may serve the CRI: all but
// those that say they do not, as Docker's containerd. none is told of these.
func (s Search) ofRuntimes(ctx context.Context, sockets []Socket, none *NotFoundError) []Socket {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	without := make([]bool, len(sockets))
	var all sync.WaitGroup
	for i, socket := range sockets {
		all.Go(func() {
			r, err := criclient.Probe(ctx, filepath.Join(s.Root, socket.Path))
			without[i] = err == nil && !slices.ContainsFunc(r.Answers, func(a criclient.Answer) bool {
				return a.Service == criclient.RuntimeService && !a.Unimplemented()
			})
		})
	}
	all.Wait()
	var may []Socket
	for i, socket := range sockets {
		if without[i] {
			none.Places = append(none.Places, Place{socket.Path, "the program there serves no CRI"})
		} else {
			may = append(may, socket)
		}
	}
	return may
}

func problem(err error) string {
	var at *criclient.EndpointError
	if errors.As(err, &at) {
		return at.Problem
	}
	return err.Error()
}
