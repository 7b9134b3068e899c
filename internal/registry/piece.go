package registry

import (
	"context"
	"sync"
)

// A piece is a part of a blob that is fetched ahead into memory, by a goroutine
// of its own. It is read while it comes.
type piece struct {
	from, to int64
	buf      *[]byte // of a pool, at least as large
	taken    int     // of buf; the reader's own
	stream   *stream
	stop     context.CancelFunc
	ended    chan struct{} // closed when the goroutine is gone
	news     chan struct{} // has something when one of the following changed

	mu     sync.Mutex
	begun  bool // the registry answered with that range
	filled int  // of buf
	err    error
}

// fetch begins a piece. The caller has taken one of Client.ahead for it.
func (b *blob) fetch(from, to int64) *piece {
	c := b.repo.client
	buf, _ := c.buffers.Get().(*[]byte)
	if buf == nil || int64(len(*buf)) < to-from {
		fresh := make([]byte, c.piece)
		buf = &fresh
	}
	ctx, stop := context.WithCancel(b.ctx)
	p := &piece{
		from: from, to: to, buf: buf, stop: stop,
		stream: &stream{repo: b.repo, ctx: ctx, want: b.want, offset: from, end: to, exact: true},
		ended:  make(chan struct{}), news: make(chan struct{}, 1),
	}
	go p.run()
	return p
}

func (p *piece) run() {
	defer close(p.ended)
	defer p.stream.close()
	err := p.stream.open()
	p.tell(err == nil, 0, err)
	for at := 0; err == nil && p.stream.offset < p.to; {
		var n int
		n, err = p.stream.read((*p.buf)[at : p.to-p.from])
		at += n
		p.tell(true, at, err)
	}
}

func (p *piece) tell(begun bool, filled int, err error) {
	p.mu.Lock()
	p.begun, p.filled, p.err = begun, filled, err
	p.mu.Unlock()
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// answered waits until it is known whether the registry sends the piece, and
// returns why not.
func (p *piece) answered(ctx context.Context) error {
	for {
		p.mu.Lock()
		begun, err := p.begun, p.err
		p.mu.Unlock()
		if begun || err != nil {
			return err
		}
		select {
		case <-p.news:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// read reads what has come, and waits if that is nothing. 0 and no error is the
// piece's end.
func (p *piece) read(ctx context.Context, to []byte) (int, error) {
	for {
		p.mu.Lock()
		filled, err := p.filled, p.err
		p.mu.Unlock()
		if filled > p.taken {
			n := copy(to, (*p.buf)[p.taken:filled])
			p.taken += n
			return n, nil
		}
		if err != nil || p.from+int64(p.taken) >= p.to {
			return 0, err
		}
		select {
		case <-p.news:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// release waits for the goroutine, which has been stopped or is at its end, and
// gives back what the piece had.
func (b *blob) release(p *piece) {
	p.stop()
	<-p.ended
	for i := range p.stream.used {
		b.used[i] = true
	}
	c := b.repo.client
	c.buffers.Put(p.buf)
	<-c.ahead
}
