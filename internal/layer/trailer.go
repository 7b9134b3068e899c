package layer

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/davit-runtime/davit/internal/fault"
)

// A file of the store is
//
//	EROFS image · recipe · trailer · zeros · footer
//
// The recipe (see package erofs) says how the layer's tar stream is made again
// of the image; it is compressed by S2, or by zstd. The trailer, JSON, says what
// the file is; the footer, which ends the file, where it is. The size of the
// file is a multiple of 4096, as a loop device wants it. The trailer stands in
// the last block as far as it fits, so that one read finds out all of it.

// A Blob is what a registry sends for a layer.
type Blob struct {
	MediaType string `json:",omitempty"`
	Digest    string `json:",omitempty"`
	Size      int64  `json:",omitempty"`
}

// A trailer tells of its file all that must be known without reading it.
type trailer struct {
	ID          string   // of the layer
	Blob        Blob     // it was made of
	Native      bool     `json:",omitempty"` // the blob was the image; there is no recipe
	Features    []string `json:",omitempty"` // that a kernel needs for it, by erofs.Image.Features
	ImageBytes  int64    // of the blob if it was the image, else a multiple of 4096
	Sum         string   // of the image, by erofs.Sum
	RecipeBytes int64    // as it is in the file, behind the image's last block
	RecipeSum   uint32   // CRC-32C of that
	First       uint32   // CRC-32C of the image's first block
	Info        Info     // without Bytes, which the file's own are
}

const (
	footerMagic   = "davitlay"
	footerVersion = 1
	footerBytes   = 40
	blockBytes    = 4096
	maxTrailer    = 128 << 20 // as many implicit directories as a layer may have
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// align returns the end of the block that n ends in.
func align(n int64) int64 { return (n + blockBytes - 1) / blockBytes * blockBytes }

// encode returns what ends a file whose content so far is of size bytes.
func (t *trailer) encode(size int64) ([]byte, error) {
	text, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	total := align(size + int64(len(text)) + footerBytes)
	tail := make([]byte, total-size)
	// As far back as it goes: before the footer, in its block if it fits there.
	at := max(0, len(tail)-footerBytes-len(text)) / 8 * 8
	copy(tail[at:], text)
	f := tail[len(tail)-footerBytes:]
	copy(f, footerMagic)
	binary.LittleEndian.PutUint32(f[8:], footerVersion)
	binary.LittleEndian.PutUint32(f[12:], checksum(text))
	binary.LittleEndian.PutUint64(f[16:], uint64(size)+uint64(at))
	binary.LittleEndian.PutUint64(f[24:], uint64(len(text)))
	binary.LittleEndian.PutUint32(f[36:], checksum(f[:36]))
	return tail, nil
}

// damaged is the error for a file that is not as it was written.
func damaged(format string, args ...any) error {
	return fault.New(fault.Unknown, "", "the file is damaged: "+format, args...)
}

// readTrailer reads and checks a file's end, its size and its first block. It
// is cheap; what is between, verify looks at.
func readTrailer(f io.ReaderAt, size int64) (*trailer, error) {
	if size < blockBytes || size%blockBytes != 0 {
		return nil, damaged("it has %d bytes, which cannot be", size)
	}
	last := make([]byte, blockBytes)
	if _, err := f.ReadAt(last, size-blockBytes); err != nil {
		return nil, readError(err)
	}
	foot := last[blockBytes-footerBytes:]
	if string(foot[:8]) != footerMagic || binary.LittleEndian.Uint32(foot[36:]) != checksum(foot[:36]) {
		return nil, damaged("it does not end as it should")
	}
	if v := binary.LittleEndian.Uint32(foot[8:]); v != footerVersion {
		return nil, fault.New(fault.Precondition, "", "the file has format version %d, this program reads %d", v, footerVersion)
	}
	at, n := int64(binary.LittleEndian.Uint64(foot[16:])), int64(binary.LittleEndian.Uint64(foot[24:]))
	if at < 0 || n < 0 || n > maxTrailer || at > size-footerBytes || n > size-footerBytes-at {
		return nil, damaged("its trailer is said to be where none can be")
	}
	text := make([]byte, n)
	if at >= size-blockBytes {
		copy(text, last[at-(size-blockBytes):])
	} else if _, err := f.ReadAt(text, at); err != nil {
		return nil, readError(err)
	}
	if checksum(text) != binary.LittleEndian.Uint32(foot[12:]) {
		return nil, damaged("the checksum of its trailer is another")
	}
	t := &trailer{}
	if err := json.Unmarshal(text, t); err != nil {
		return nil, damaged("its trailer: %w", err)
	}
	if t.ImageBytes < blockBytes || t.RecipeBytes < 0 || t.ImageBytes > at || t.RecipeBytes > at-align(t.ImageBytes) {
		return nil, damaged("its trailer has sizes that cannot be")
	}
	if err := t.checkFirst(f); err != nil {
		return nil, err
	}
	t.Info.Bytes = uint64(size)
	return t, nil
}

// checkFirst checks the image's first block, which was written last.
func (t *trailer) checkFirst(f io.ReaderAt) error {
	first := make([]byte, blockBytes)
	if _, err := f.ReadAt(first, 0); err != nil {
		return readError(err)
	}
	if checksum(first) != t.First {
		return damaged("the checksum of its first block is another")
	}
	return nil
}

// readError tells a file that ends too soon from a disk that does not answer.
func readError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("it ends too soon")
	}
	return fmt.Errorf("read: %w", err)
}

// recipe is where in the file the recipe is.
func (t *trailer) recipe(f io.ReaderAt) *io.SectionReader {
	return io.NewSectionReader(f, align(t.ImageBytes), t.RecipeBytes)
}
