package imageapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/grpc"

	imagev1 "github.com/davit-runtime/davit/api/image/v1"
	"github.com/davit-runtime/davit/internal/archive"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/image"
)

// pieceBytes is how much of an archive goes into one message.
const pieceBytes = 256 << 10

// An incoming archive is what a client sends, as a stream of bytes. It waits
// for the client, and ends by the call's context.
type incoming struct {
	from grpc.ClientStreamingServer[imagev1.LoadRequest, imagev1.LoadResponse]
	left []byte // of the message that came last
}

func (i *incoming) Read(p []byte) (int, error) {
	for len(i.left) == 0 {
		r, err := i.from.Recv()
		if err != nil {
			return 0, err // io.EOF when the client has sent all
		}
		i.left = r.Data
	}
	n := copy(p, i.left)
	i.left = i.left[n:]
	return n, nil
}

// An outgoing archive is sent in pieces; Send waits when the client is slow.
// What was written is sent for sure only after flush.
type outgoing struct {
	to    grpc.ServerStreamingServer[imagev1.SaveResponse]
	piece []byte
}

func (o *outgoing) Write(p []byte) (written int, err error) {
	if o.piece == nil {
		o.piece = make([]byte, 0, pieceBytes)
	}
	for len(p) > 0 {
		n := min(len(p), pieceBytes-len(o.piece))
		o.piece = append(o.piece, p[:n]...)
		p, written = p[n:], written+n
		if len(o.piece) == pieceBytes {
			if err := o.flush(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

func (o *outgoing) flush() error {
	if len(o.piece) == 0 {
		return nil
	}
	// gRPC has the message in its own form when Send returns.
	err := o.to.Send(&imagev1.SaveResponse{Data: o.piece})
	o.piece = o.piece[:0]
	return err
}

// Files are archives for a store.
type Files struct {
	Of    *image.Store
	Spool string // a directory with room for an archive while it is read
}

// Read implements Archives.
func (f Files) Read(ctx context.Context, stream io.Reader) (*archive.Archive, error) {
	return archive.Read(ctx, stream, f.Spool)
}

// Containerd implements Archives.
func (f Files) Containerd(root, namespace string) (*archive.Archive, error) {
	return archive.Containerd(cmp.Or(root, "/var/lib/containerd"), cmp.Or(namespace, "k8s.io"))
}

// Storage implements Archives.
func (f Files) Storage(root string) (*archive.Archive, error) {
	return archive.Storage(cmp.Or(root, "/var/lib/containers/storage"))
}

// Save implements Archives.
func (f Files) Save(ctx context.Context, refs []string, to io.Writer) error {
	return archive.Save(ctx, f.Of, refs, to)
}

func (s *service) Load(from grpc.ClientStreamingServer[imagev1.LoadRequest, imagev1.LoadResponse]) (err error) {
	a, err := s.Archives.Read(from.Context(), &incoming{from: from})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	answer := &imagev1.LoadResponse{}
	for _, offer := range a.Offers {
		i, err := s.Store.Import(from.Context(), offer, image.PullOptions{})
		if err != nil {
			return fmt.Errorf("%s: %w", nameOf(offer), err)
		}
		answer.Images = append(answer.Images, loaded(i, offer))
	}
	return from.SendAndClose(answer)
}

// nameOf is what people call what is offered.
func nameOf(o image.Offer) string {
	if len(o.Names) > 0 {
		return o.Names[0]
	}
	return o.Digest.String()
}

func loaded(i image.Image, o image.Offer) *imagev1.LoadedImage {
	return &imagev1.LoadedImage{Id: i.ID, Names: o.Names}
}

func (s *service) Save(r *imagev1.SaveRequest, to grpc.ServerStreamingServer[imagev1.SaveResponse]) error {
	if len(r.Images) == 0 {
		return fault.New(fault.Invalid, "", "images: none is named")
	}
	out := &outgoing{to: to}
	if err := s.Archives.Save(to.Context(), r.Images, out); err != nil {
		return err
	}
	return out.flush()
}

func (s *service) Import(r *imagev1.ImportRequest, to grpc.ServerStreamingServer[imagev1.ImportResponse]) (err error) {
	var a *archive.Archive
	switch r.Store {
	case imagev1.ForeignStore_FOREIGN_STORE_CONTAINERD:
		a, err = s.Archives.Containerd(r.Root, r.ContainerdNamespace)
	case imagev1.ForeignStore_FOREIGN_STORE_CRIO:
		a, err = s.Archives.Storage(r.Root)
	default:
		err = fault.New(fault.Invalid, "", "store: %d is not known", r.Store)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	chosen, absent := choose(a.Offers, r.Images)
	for _, name := range absent {
		if err := to.Send(&imagev1.ImportResponse{Name: utf8(name), Error: "it is not there"}); err != nil {
			return err
		}
	}
	for _, offer := range chosen {
		answer := &imagev1.ImportResponse{Name: utf8(nameOf(offer))}
		i, err := s.Store.Import(to.Context(), offer, image.PullOptions{})
		switch {
		case to.Context().Err() != nil:
			return context.Cause(to.Context())
		case err != nil:
			answer.Error = utf8(err.Error())
		default:
			answer.Image = loaded(i, offer)
		}
		if err := to.Send(answer); err != nil {
			return err
		}
	}
	return nil
}

// choose returns the offers that are wanted, all if nothing is named, and which
// names none of them has.
func choose(offers []image.Offer, wanted []string) (chosen []image.Offer, absent []string) {
	if len(wanted) == 0 {
		return offers, nil
	}
	for _, name := range wanted {
		found := false
		for _, o := range offers {
			if slices.ContainsFunc(o.Names, func(n string) bool { return isOf(n, name) }) {
				chosen, found = append(chosen, o), true
			}
		}
		if !found {
			absent = append(absent, name)
		}
	}
	return chosen, absent
}
