// Package endpoint finds the container runtime that the user means, in the
// order that crictl's users know: what they say now, /etc/crictl.yaml, what the
// node's kubelet is set to, then the sockets that runtimes usually serve.
//
// The first place that names one counts, even if nobody answers there: what was
// said is never passed over for a guess. Sockets are guesses, so of those only
// one may answer. Nothing is written, and nobody is asked more than whether he
// serves the CRI. Command davit and davit doctor call it.
package endpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/davit-runtime/davit/criclient"
	"github.com/davit-runtime/davit/internal/kubelet"
)

// What users say endpoints by. The variables are crictl's.
const (
	Flag      = "--endpoint"
	ImageFlag = "--image-endpoint"
	Env       = "CONTAINER_RUNTIME_ENDPOINT"
	ImageEnv  = "IMAGE_SERVICE_ENDPOINT"
	CrictlEnv = "CRI_CONFIG_FILE" // names another file than /etc/crictl.yaml
)

// A Search is what the user says, and where to look beside that.
type Search struct {
	Root             string              // files are looked for below it; "/" for this node
	Named, ImageName string              // by flags; empty: not named
	Env              func(string) string // os.Getenv
}

// A Setting is an endpoint and who says so.
type Setting struct {
	Address string // unix:///path
	From    string // "--endpoint", "/etc/crictl.yaml:1", "containerd's usual socket"
}

// Found is what a Search found. Its addresses can be sockets' names; whether
// somebody answers there is not known.
type Found struct {
	Runtime, Image Setting
	Timeout        time.Duration // of connecting, where /etc/crictl.yaml has one; else 0
}

// A Place is one that was looked at.
type Place struct {
	Where, What string
}

// A NotFoundError says that no runtime was found, and where it was looked for.
type NotFoundError struct {
	Places []Place
	Denied bool // at least one place is not for this user to see
}

func (e *NotFoundError) Error() string {
	var b strings.Builder
	b.WriteString("no container runtime was found; looked at")
	width := 0
	for _, p := range e.Places {
		width = max(width, len(p.Where))
	}
	for _, p := range e.Places {
		fmt.Fprintf(&b, "\n  %-*s  %s", width, p.Where, p.What)
	}
	b.WriteString("\nstart one, or name its socket by " + Flag)
	if e.Denied {
		b.WriteString("; as root more can be seen")
	}
	return b.String()
}

// An AmbiguousError says that several runtimes serve their usual sockets, and
// nobody said which is meant.
type AmbiguousError struct {
	Sockets []Socket // at least two
}

func (e *AmbiguousError) Error() string {
	var all []string
	for _, s := range e.Sockets {
		all = append(all, s.Runtime+" at "+s.Setting().Address)
	}
	return fmt.Sprintf("several container runtimes answer: %s; choose one by %s or %s, or for good by a line in %s: runtime-endpoint: %s",
		strings.Join(all, ", "), Flag, Env, crictlFile, e.Sockets[0].Setting().Address)
}

// Find returns the runtime that is meant. It returns an error that names its
// file and line, or the flag, for what cannot be an endpoint or cannot be read;
// a *NotFoundError; or an *AmbiguousError. It blocks for two seconds at most.
//
// An endpoint for images that a file has counts where that file, or one that
// comes after it, has the runtime's, so that nobody who names a runtime gets the
// images of another.
func (s Search) Find(ctx context.Context) (Found, error) {
	var found Found
	image := s.GivenImages()
	take := func(runtime, itsImage Setting) {
		found.Runtime = runtime
		if image.Address == "" {
			image = itsImage
		}
	}
	var places []Place
	runtime := s.Given()
	if runtime.Address != "" {
		take(runtime, Setting{})
	} else {
		places = append(places, Place{Flag, "not given"}, Place{Env, "not set"})
	}
	if found.Runtime.Address == "" {
		c, err := ReadCrictl(s.Root, s.Env(CrictlEnv))
		if err != nil {
			return Found{}, err
		}
		found.Timeout = c.Timeout
		take(c.Runtime, c.Image)
		places = append(places, c.place())
	}
	if found.Runtime.Address == "" {
		runtime, images, place := s.kubelet()
		take(runtime, images)
		places = append(places, place)
	}
	if found.Runtime.Address == "" {
		at, err := s.usual(ctx, places)
		if err != nil {
			return Found{}, err
		}
		take(at, Setting{})
	}
	found.Image = image
	return found.parsed()
}

// Given is the runtime's endpoint as the user says it now; empty if he does not.
func (s Search) Given() Setting {
	if s.Named != "" {
		return Setting{s.Named, Flag}
	}
	if at := s.Env(Env); at != "" {
		return Setting{at, Env}
	}
	return Setting{}
}

// GivenImages is the image service's endpoint as the user says it now; empty if
// he does not.
func (s Search) GivenImages() Setting {
	if s.ImageName != "" {
		return Setting{s.ImageName, ImageFlag}
	}
	if at := s.Env(ImageEnv); at != "" {
		return Setting{at, ImageEnv}
	}
	return Setting{}
}

// parsed has the addresses as they are usually written. Images are the
// runtime's where nobody says otherwise.
func (f Found) parsed() (Found, error) {
	if f.Image.Address == "" {
		f.Image = f.Runtime
	}
	for _, at := range []*Setting{&f.Runtime, &f.Image} {
		address, err := criclient.ParseEndpoint(at.Address)
		if err != nil {
			return Found{}, fmt.Errorf("%s: %w", at.From, err)
		}
		at.Address = address
	}
	return f, nil
}

// kubelet returns what the node's kubelet is set to; empty where it is not,
// and place says why.
func (s Search) kubelet() (runtime, images Setting, place Place) {
	place.Where = "the kubelet"
	k := kubelet.Find(s.Root)
	if k == nil {
		place.What = "none is set up here"
		return runtime, images, place
	}
	if v, ok := k.Endpoint(); ok {
		runtime = Setting{v.Text, v.From}
	}
	if v, ok := k.ImageEndpoint(); ok {
		images = Setting{v.Text, v.From}
	}
	switch {
	case len(k.Faults) > 0:
		place.What = strings.ReplaceAll(errors.Join(k.Faults...).Error(), "\n", "; ")
	default:
		place.What = "is set to no endpoint: " + cmp.Or(strings.Join(k.Files, ", "), "flags only")
	}
	return runtime, images, place
}
