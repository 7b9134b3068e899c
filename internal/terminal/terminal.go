// Package terminal is a person's side of a session with a container: the
// terminal whose keys all go to the container, its size, and the keys that
// leave. Command davit uses it; nothing in it knows what a container is.
package terminal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/davit-runtime/davit/criclient/cristream"
)

// Of returns the terminal that r is, or nil.
func Of(r any) *os.File {
	if f, ok := r.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

// Raw makes each key come as it is, and none a signal, until restore is
// called. That may be done any number of times, by several goroutines, and
// has put back what was there when it returns.
func Raw(f *os.File) (restore func(), err error) {
	before, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("make the terminal raw: %w", err)
	}
	return sync.OnceFunc(func() { _ = term.Restore(int(f.Fd()), before) }), nil
}

// TakeBack puts this process's group into the foreground of f again. A shell that
// cannot see it, since it is in another PID namespace, leaves none there.
//
// kernel: tcsetpgrp(3), SIGTTOU.
func TakeBack(f *os.File) {
	signal.Ignore(unix.SIGTTOU)
	defer signal.Reset(unix.SIGTTOU)
	_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.TIOCSPGRP, unix.Getpgrp()) // of another session's it is not taken
}

// Sizes returns the size of f now and whenever it has changed, the last one
// only of several that nobody took, until ctx ends.
func Sizes(ctx context.Context, f *os.File) <-chan cristream.Size {
	sizes, changed := make(chan cristream.Size, 1), make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	go func() {
		defer signal.Stop(changed)
		for {
			if width, height, err := term.GetSize(int(f.Fd())); err == nil {
				select {
				case <-sizes:
				default:
				}
				sizes <- cristream.Size{Width: uint16(width), Height: uint16(height)}
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return sizes
}

// ParseKeys reads keys as Docker writes them: "ctrl-p,ctrl-q", or single
// characters. Empty: none.
func ParseKeys(text string) (keys []byte, err error) {
	if text == "" {
		return nil, nil
	}
	for _, name := range strings.Split(text, ",") {
		letter, control := strings.CutPrefix(strings.ToLower(name), "ctrl-")
		switch {
		case control && len(letter) == 1 && (letter[0] >= '@' && letter[0] <= '_' || letter[0] >= 'a' && letter[0] <= 'z'):
			keys = append(keys, strings.ToUpper(letter)[0]-'@')
		case !control && len(name) == 1:
			keys = append(keys, name[0])
		default:
			return nil, fmt.Errorf("key %q: want ctrl- and a letter, or one character", name)
		}
	}
	return keys, nil
}

// ErrLeft is the wish to leave.
var ErrLeft = errors.New("the keys to leave were typed")

// A Leaver passes on what From has until its Keys are typed one after the
// other, which is ErrLeft. What begins as they do is held back until it is
// clear that it is something else.
type Leaver struct {
	From io.Reader
	Keys []byte

	held int    // as many of Keys were typed
	rest []byte // to be passed on
	err  error  // once rest is
}

func (l *Leaver) Read(p []byte) (int, error) {
	if len(p) == 0 || len(l.Keys) == 0 {
		return l.From.Read(p)
	}
	for len(l.rest) == 0 {
		if l.err != nil {
			return 0, l.err
		}
		typed := make([]byte, len(p))
		n, err := l.From.Read(typed)
		l.take(typed[:n])
		if err != nil && l.err == nil {
			l.rest, l.err = append(l.rest, l.Keys[:l.held]...), err
		}
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

func (l *Leaver) take(typed []byte) {
	for _, key := range typed {
		if key != l.Keys[l.held] && l.held > 0 {
			l.rest = append(l.rest, l.Keys[:l.held]...)
			l.held = 0
		}
		if key != l.Keys[l.held] {
			l.rest = append(l.rest, key)
			continue
		}
		if l.held++; l.held == len(l.Keys) {
			l.held, l.err = 0, ErrLeft
			return
		}
	}
}
