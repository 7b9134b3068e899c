package endpoint

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
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
			if sameAsOne(files, info) {
				continue // by another name
			}
			files = append(files, info)
		}
		answering = append(answering, socket)
	}
	if len(answering) > 1 {
		for i, serves := range s.serve(ctx, answering) {
			if !serves {
				none.Places = append(none.Places, Place{answering[i].Path, "the program there serves no CRI"})
				answering[i].Path = ""
			}
		}
	}
	var all []Setting
	for _, socket := range answering {
		if socket.Path != "" {
			all = append(all, socket.Setting())
		}
	}
	switch len(all) {
	case 0:
		return Setting{}, none
	case 1:
		return all[0], nil
	}
	return Setting{}, &AmbiguousError{all}
}

func problem(err error) string {
	var at *criclient.EndpointError
	if errors.As(err, &at) {
		return at.Problem
	}
	return err.Error()
}

func sameAsOne(files []os.FileInfo, info os.FileInfo) bool {
	for _, f := range files {
		if os.SameFile(f, info) {
			return true
		}
	}
	return false
}

// serve reports which sockets' programs may serve the CRI: all but those that
// say they do not, as Docker's containerd.
func (s Search) serve(ctx context.Context, sockets []Socket) []bool {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	may := make([]bool, len(sockets))
	var all sync.WaitGroup
	for i, socket := range sockets {
		all.Go(func() {
			r, err := criclient.Probe(ctx, filepath.Join(s.Root, socket.Path))
			for _, a := range r.Answers {
				if a.Service == criclient.RuntimeService && !a.Unimplemented() {
					may[i] = true
				}
			}
			may[i] = may[i] || err != nil
		})
	}
	all.Wait()
	return may
}
