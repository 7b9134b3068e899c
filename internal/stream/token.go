package stream

import (
	"container/list"
	"crypto/rand"
	"sync"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
)

const (
	// tokenLife is how long a URL that nobody opened is good for.
	tokenLife = time.Minute
	// maxTokens bounds the URLs that wait to be opened.
	maxTokens = 1000
)

// tokens are the sessions that may be opened. The zero value is ready.
type tokens struct {
	mu    sync.Mutex
	byKey map[string]*list.Element
	old   list.List // of offer, the oldest first
}

type offer struct {
	token   string
	until   time.Time
	session session
}

// add returns the token of a new offer. Exhausted with too many.
func (t *tokens) add(s session) (string, error) {
	token := rand.Text() // 128 bits at least
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	if len(t.byKey) >= maxTokens {
		return "", fault.New(fault.Exhausted, "", "%d sessions wait to be opened: their URLs are good for %v", maxTokens, tokenLife)
	}
	if t.byKey == nil {
		t.byKey = map[string]*list.Element{}
	}
	t.byKey[token] = t.old.PushBack(offer{token, time.Now().Add(tokenLife), s})
	return token, nil
}

// take returns the session of an offer, which ends with that.
func (t *tokens) take(token string) (session, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	e, ok := t.byKey[token]
	if !ok {
		return nil, false
	}
	return t.drop(e).session, true
}

// expire drops what is too old. t.mu must be held.
func (t *tokens) expire() {
	for e := t.old.Front(); e != nil && time.Now().After(e.Value.(offer).until); e = t.old.Front() {
		t.drop(e)
	}
}

func (t *tokens) drop(e *list.Element) offer {
	o := t.old.Remove(e).(offer)
	delete(t.byKey, o.token)
	return o
}
