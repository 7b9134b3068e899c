package erofs

import (
	"context"
	"io"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
)

// An Image is an EROFS image that is read without being mounted. Safe for
// concurrent use.
type Image struct {
	r    io.ReaderAt
	size int64
}

// Open reads an image's superblock, of a file that begins with it and is size
// bytes long, and checks it: its checksum, too, if it has one. Of an image that
// is cut off, damaged or none it returns an error of kind Unknown.
func Open(r io.ReaderAt, size int64) (*Image, error) {
	return nil, fault.New(fault.Unimplemented, "erofs.Open", "not yet")
}

// Size returns the image's length in bytes.
func (i *Image) Size() int64 { return i.size }

// Incompat returns the features that a kernel must know to mount the image
// (kernel: erofs_fs.h, EROFS_FEATURE_INCOMPAT_…). Images of Build have none,
// and need Linux 5.4.
func (i *Image) Incompat() uint32 { return 0 }

// Check walks everything once: all metadata is in bounds, names are in order
// and possible, each directory has one parent, nothing is linked more often
// than it says. Overlayfs's own attributes are refused, but for those of
// opaque directories: they could point into other layers. It reads no content
// of files. The image's features are the caller's to judge (Incompat).
//
// Errors are of kind Unknown, or of the image's reader.
func (i *Image) Check(ctx context.Context) error {
	return fault.New(fault.Unimplemented, "erofs.Check", "not yet")
}

// An Entry is one file of an image, of any type.
type Entry struct {
	Name   string // relative and clean, "." for the root
	Inode  uint64 // names of one file have the same
	Mode   uint32 // as in stat(2), with the type
	UID    uint32
	GID    uint32
	Links  uint32
	Rdev   uint32 // major<<8 | minor&0xff | minor&^0xff<<12, as in stat(2) for what EROFS can hold
	Size   int64
	Time   time.Time
	Xattrs map[string]string
	Target string // of a symbolic link
}

// Stat returns the file of that name: relative, "." for the root. Symbolic
// links are not followed, anywhere. NotFound if there is none.
func (i *Image) Stat(name string) (Entry, error) {
	return Entry{}, fault.New(fault.Unimplemented, "erofs.Stat", "not yet")
}

// Walk calls f for each file, directories before what is in them and those in
// order, until f returns an error, which Walk returns.
func (i *Image) Walk(ctx context.Context, f func(Entry) error) error {
	return fault.New(fault.Unimplemented, "erofs.Walk", "not yet")
}
