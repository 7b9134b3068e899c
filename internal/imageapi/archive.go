package imageapi

import (
	"google.golang.org/grpc"

	imagev1 "github.com/davit-runtime/davit/api/image/v1"
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

func (s *service) Load(from grpc.ClientStreamingServer[imagev1.LoadRequest, imagev1.LoadResponse]) error {
	images, err := s.Archives.Load(from.Context(), &incoming{from: from})
	if err != nil {
		return err
	}
	answer := &imagev1.LoadResponse{}
	for _, i := range images {
		answer.Images = append(answer.Images, loaded(i))
	}
	return from.SendAndClose(answer)
}

func loaded(i image.Image) *imagev1.LoadedImage {
	return &imagev1.LoadedImage{Id: i.ID, Names: i.RepoTags}
}

func (s *service) Save(r *imagev1.SaveRequest, to grpc.ServerStreamingServer[imagev1.SaveResponse]) error {
	format := OCI
	switch r.Format {
	case imagev1.ArchiveFormat_ARCHIVE_FORMAT_UNSPECIFIED, imagev1.ArchiveFormat_ARCHIVE_FORMAT_OCI:
	case imagev1.ArchiveFormat_ARCHIVE_FORMAT_DOCKER:
		format = Docker
	default:
		return fault.New(fault.Invalid, "", "format: %d is not known", r.Format)
	}
	if len(r.Images) == 0 {
		return fault.New(fault.Invalid, "", "images: none is named")
	}
	out := &outgoing{to: to}
	if err := s.Archives.Save(to.Context(), out, r.Images, format); err != nil {
		return err
	}
	return out.flush()
}
