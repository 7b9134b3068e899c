// Package crilog reads the log files that a container runtime writes for the
// kubelet: parses their lines, joins what was split, finds the last lines and
// follows a file across rotation.
//
// It never writes, and never waits for anything but the file and the caller's
// word that the container has ended. cmd/davit calls it.
package crilog

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

// maxLineBytes bounds what is kept of a line that was split: beyond it the
// parts are passed on as they come.
const maxLineBytes = 1 << 20

// A Record is one line of a log file.
type Record struct {
	Time    time.Time
	Stream  string // stdout or stderr
	Partial bool   // the line goes on in the stream's next record
	Text    []byte // without the line's end
}

// Parse takes one line of a log file apart, with or without its newline. Text
// shares line's memory.
//
// Source: Kubernetes, design-proposals, kubelet-cri-logging.md:
// TIMESTAMP STREAM TAG[:TAG…] TEXT, the time in RFC 3339 with nanoseconds.
func Parse(line []byte) (Record, error) {
	line = bytes.TrimSuffix(line, []byte("\n"))
	stamp, rest, ok := bytes.Cut(line, []byte(" "))
	stream, rest, ok2 := bytes.Cut(rest, []byte(" "))
	tags, text, ok3 := bytes.Cut(rest, []byte(" "))
	if !ok || !ok2 {
		return Record{}, errors.New("log line has no time, stream and tag")
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return Record{}, fmt.Errorf("log line: %w", err)
	}
	if s := string(stream); s != "stdout" && s != "stderr" {
		return Record{}, fmt.Errorf("log line of stream %q", s)
	}
	tag, _, _ := bytes.Cut(tags, []byte(":"))
	if !ok3 {
		text = nil
	}
	switch string(tag) {
	case "F":
		return Record{Time: t, Stream: string(stream), Text: text}, nil
	case "P":
		return Record{Time: t, Stream: string(stream), Text: text, Partial: true}, nil
	}
	return Record{}, fmt.Errorf("log line with tag %q", tag)
}

// A Line is what the container wrote as one line.
type Line struct {
	Time   time.Time // of the line's first record; zero if the file is no CRI log
	Stream string
	Text   []byte // without the line's end; valid until the callback returns
}

// joiner puts split lines together, each stream for itself.
type joiner struct {
	open map[string]*Line
}

// add calls emit when r ends a line.
func (j *joiner) add(raw []byte, emit func(Line) error) error {
	r, err := Parse(raw)
	if err != nil { // show it rather than lose it
		return emit(Line{Text: bytes.TrimSuffix(raw, []byte("\n"))})
	}
	l := j.open[r.Stream]
	if l == nil && !r.Partial {
		return emit(Line{Time: r.Time, Stream: r.Stream, Text: r.Text})
	}
	if l == nil {
		l = &Line{Time: r.Time, Stream: r.Stream}
		if j.open == nil {
			j.open = map[string]*Line{}
		}
		j.open[r.Stream] = l
	}
	l.Text = append(l.Text, r.Text...)
	if r.Partial && len(l.Text) < maxLineBytes {
		return nil
	}
	delete(j.open, r.Stream)
	return emit(*l)
}

// flush emits what no full record has ended.
func (j *joiner) flush(emit func(Line) error) error {
	for _, stream := range []string{"stdout", "stderr"} {
		if l := j.open[stream]; l != nil {
			delete(j.open, stream)
			if err := emit(*l); err != nil {
				return err
			}
		}
	}
	return nil
}
