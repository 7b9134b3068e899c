package crilog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"
)

const (
	// All asks for every line, as the number of last lines.
	All = -1

	tailBlockBytes = 64 << 10
	recordHead     = 64 // time, stream and tag fit
	pollFile       = 100 * time.Millisecond
	pollEnded      = 500 * time.Millisecond
)

// Read passes the last lines of the file at path to emit.
func Read(path string, last int, emit func(Line) error) error {
	f, err := openAt(path, last)
	if err != nil {
		return err
	}
	defer f.Close()
	s := &source{file: f, in: bufio.NewReader(f)}
	if err := s.drain(emit); err != nil {
		return err
	}
	return s.finish(emit)
}

// Follow is Read, and then passes on what is written, also after the file is
// renamed and another appears at path, until ended says that no more will
// come, emit fails, or ctx ends, which is no error.
func Follow(ctx context.Context, path string, last int, ended func(context.Context) bool, emit func(Line) error) error {
	f, err := openAt(path, last)
	if err != nil {
		return err
	}
	s := &source{file: f, in: bufio.NewReader(f)}
	defer func() { s.file.Close() }()
	tick := time.NewTicker(pollFile)
	defer tick.Stop()
	asked := time.Now()
	for last := false; ; {
		if err := s.drain(emit); err != nil {
			return err
		}
		again, err := s.reopen(path, emit)
		if err != nil {
			return err
		}
		switch {
		case again:
			continue
		case last:
			return s.finish(emit)
		case time.Since(asked) >= pollEnded:
			asked = time.Now()
			if last = ended(ctx); last {
				continue // once more: what came before the end
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// source is an open log file and what was read of it beyond the last whole
// record.
type source struct {
	file *os.File
	in   *bufio.Reader
	rest []byte
	join joiner
}

// drain passes on all whole records that are there.
func (s *source) drain(emit func(Line) error) error {
	for {
		part, err := s.in.ReadSlice('\n')
		s.rest = append(s.rest, part...)
		whole := bytes.HasSuffix(s.rest, []byte("\n"))
		if whole || len(s.rest) > maxLineBytes {
			raw := s.rest
			s.rest = s.rest[:0]
			if err := s.join.add(raw, emit); err != nil {
				return err
			}
		}
		switch {
		case err == nil, errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return nil
		default:
			return err
		}
	}
}

// finish passes on what is left when nothing more will come.
func (s *source) finish(emit func(Line) error) error {
	if len(s.rest) > 0 {
		if err := s.join.add(s.rest, emit); err != nil {
			return err
		}
		s.rest = nil
	}
	return s.join.flush(emit)
}

// reopen changes to the file that is at path now, if it is another one or was
// cut to nothing. While there is none, the old one stays.
func (s *source) reopen(path string, emit func(Line) error) (changed bool, err error) {
	now, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	have, err := s.file.Stat()
	if err != nil {
		return false, err
	}
	at, err := s.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return false, err
	}
	if os.SameFile(now, have) && now.Size() >= at {
		return false, nil
	}
	next, err := os.Open(path)
	if err != nil {
		return false, err
	}
	if err := s.drain(emit); err != nil { // written between the last drain and the renaming
		return false, errors.Join(err, next.Close())
	}
	_ = s.file.Close()
	s.file, s.rest = next, nil
	s.in.Reset(next)
	return true, nil
}

// openAt opens a log file at the first of its last lines.
func openAt(path string, last int) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil || last < 0 {
		return f, err
	}
	offset, err := tailOffset(f, last)
	if err == nil {
		_, err = f.Seek(offset, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// tailOffset returns where the last n lines begin, reading backwards: after
// the record that ends the line before them.
func tailOffset(f *os.File, n int) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	lines, after := 0, int64(-1) // after: the offset behind the record whose start is sought
	block := make([]byte, tailBlockBytes)
	for end := info.Size(); end > 0; {
		from := max(end-tailBlockBytes, 0)
		got, err := f.ReadAt(block[:end-from], from)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for i := bytes.LastIndexByte(block[:got], '\n'); i >= 0; i = bytes.LastIndexByte(block[:i], '\n') {
			here := from + int64(i) + 1
			if after >= 0 && endsLine(f, here) {
				if lines == n {
					return after, nil
				}
				lines++
			}
			after = here
		}
		end = from
	}
	if after >= 0 && endsLine(f, 0) && lines == n {
		return after, nil
	}
	return 0, nil
}

// endsLine reports whether the record at offset is the last of its line.
func endsLine(f *os.File, offset int64) bool {
	head := make([]byte, recordHead)
	n, _ := f.ReadAt(head, offset)
	head, _, _ = bytes.Cut(head[:n], []byte("\n"))
	r, err := Parse(head)
	return err != nil || !r.Partial
}
