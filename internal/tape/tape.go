// Package tape reads tar archives as archive/tar does, for less: layers have
// tens of thousands of entries, nearly all of them with a plain header, which
// is read here. Every other header, and what is malformed, is archive/tar's. It
// opens nothing and knows no layers. Package erofs calls it.
package tape

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"time"
)

const blockSize = 512

// A Reader reads an archive, entry by entry.
type Reader struct {
	in     source
	buf    [2 * blockSize]byte // padding, and a header
	header tar.Header          // if it is plain
	left   int64               // bytes of content
	pad    int64               // bytes behind them
	slow   *tar.Reader         // where only this knows where the entry ends
	err    error
}

// A source is a stream of which something may be read again.
type source struct {
	io.Reader
	again []byte
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	if len(s.again) == 0 {
		return s.Reader.Read(p)
	}
	n := copy(p, s.again)
	s.again = s.again[n:]
	return n, nil
}

// NewReader reads the archive that r begins with, a block at a time: r should
// be cheap to read from.
func NewReader(r io.Reader) *Reader { return &Reader{in: source{Reader: r}} }

// Next is that of tar.Reader, with the same errors. The header is valid until
// the next call, and has no Format, Uname nor Gname that one could rely on.
func (r *Reader) Next() (*tar.Header, error) {
	if r.err != nil {
		return nil, r.err
	}
	h, err := r.next()
	r.err = err
	return h, err
}

func (r *Reader) next() (*tar.Header, error) {
	slow := r.slow
	if slow == nil {
		if err := r.skip(); err != nil {
			return nil, err
		}
		block := (*[blockSize]byte)(r.buf[r.pad:])
		if r.parse(block) {
			r.begin(&r.header)
			return &r.header, nil
		}
		r.in.again = block[:]
		slow = tar.NewReader(&r.in)
	}
	h, err := slow.Next()
	if err != nil {
		return nil, err
	}
	if r.slow = nil; h.Typeflag == tar.TypeXGlobalHeader || isSparse(h) {
		r.slow = slow
	}
	r.begin(h)
	return h, nil
}

func isSparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

// begin begins with an entry's content.
func (r *Reader) begin(h *tar.Header) {
	switch h.Typeflag {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		r.left = 0
	default:
		r.left = h.Size
	}
	r.pad = -r.left & (blockSize - 1)
}

// skip passes over what is left of an entry, and reads what may be a header. An
// archive may end anywhere in padding.
func (r *Reader) skip() error {
	if r.left > 0 {
		if _, err := io.CopyN(io.Discard, &r.in, r.left); errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		} else if err != nil {
			return err
		}
	}
	n, err := io.ReadFull(&r.in, r.buf[:r.pad+blockSize])
	if errors.Is(err, io.ErrUnexpectedEOF) && int64(n) <= r.pad {
		err = io.EOF
	}
	return err
}

// Read is that of tar.Reader.
func (r *Reader) Read(p []byte) (n int, err error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.slow != nil {
		n, err = r.slow.Read(p)
	} else {
		n, err = r.read(p)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

func (r *Reader) read(p []byte) (n int, err error) {
	p = p[:min(int64(len(p)), r.left)]
	if len(p) > 0 {
		n, err = r.in.Read(p)
		r.left -= int64(n)
	}
	if r.left > 0 && errors.Is(err, io.EOF) {
		return n, io.ErrUnexpectedEOF
	}
	if r.left == 0 && err == nil {
		return n, io.EOF
	}
	return n, err
}

// parse reads a plain header: of a file, a directory or a link, as POSIX and
// GNU tar write them where nothing is too long or too large for its field.
//
// POSIX.1-2024, pax, "ustar Interchange Format".
func (r *Reader) parse(b *[blockSize]byte) bool {
	h := &r.header
	*h = tar.Header{Typeflag: b[156], Name: text(b[0:100]), Linkname: text(b[157:257])}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeLink, tar.TypeSymlink:
	default:
		return false
	}
	switch string(b[257:265]) {
	case "ustar\x0000":
		if string(b[508:]) == "tar\x00" { // that of star
			return false
		}
		if prefix := text(b[345:500]); prefix != "" {
			h.Name = prefix + "/" + h.Name
		}
	case "ustar  \x00":
		if b[345] != 0 || b[357] != 0 { // more times
			return false
		}
	default:
		return false
	}
	var fields [8]int64
	for i, f := range [...][]byte{b[148:156], b[100:108], b[108:116], b[116:124], b[124:136], b[136:148], b[329:337], b[337:345]} {
		var ok bool
		if fields[i], ok = octal(f); !ok {
			return false
		}
	}
	h.Mode, h.Uid, h.Gid, h.Size = fields[1], int(fields[2]), int(fields[3]), fields[4]
	h.ModTime, h.Devmajor, h.Devminor = time.Unix(fields[5], 0), fields[6], fields[7]
	return fields[0] == sum(b)
}

// text returns what is before the first zero.
func text(b []byte) string {
	if end := bytes.IndexByte(b, 0); end >= 0 {
		b = b[:end]
	}
	return string(b)
}

// octal returns a number, with nothing before it and only blanks and zeros
// behind it. No number is 0.
func octal(b []byte) (n int64, ok bool) {
	i := 0
	for ; i < len(b) && b[i]&^7 == '0'; i++ {
		n = n<<3 | int64(b[i]&7)
	}
	for ; i < len(b); i++ {
		if b[i] != 0 && b[i] != ' ' {
			return 0, false
		}
	}
	return n, true
}

// sum is a header's checksum: of its bytes, blanks for those of the sum.
func sum(b *[blockSize]byte) (n int64) {
	const odd = 0x00ff00ff00ff00ff
	var lanes uint64 // four sums of 128 bytes at a time
	for i := 0; i < blockSize; i += 8 {
		word := binary.LittleEndian.Uint64(b[i:])
		lanes += word&odd + word>>8&odd
	}
	n = int64(lanes&0xffff + lanes>>16&0xffff + lanes>>32&0xffff + lanes>>48)
	for _, c := range b[148:156] {
		n += ' ' - int64(c)
	}
	return n
}
