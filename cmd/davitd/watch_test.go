package main

import (
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
)

// Memory is given back once it is not needed any more, and not while it is
// being used.
func TestTidyHeap(t *testing.T) {
	debug.FreeOSMemory()
	h := newHeap()
	if h.tidy() {
		t.Error("a small heap")
	}
	_, before := h.read()
	var lists [][]byte
	for range 100 {
		lists = append(lists, make([]byte, 1<<20))
	}
	if h.tidy() {
		t.Error("in the middle of a list")
	}
	var pool sync.Pool // as pulls have
	pool.Put(new(lists))
	lists = nil
	if !h.tidy() {
		t.Error("what a list took is kept")
	}
	if _, after := h.read(); after > before+quietBytes {
		t.Errorf("%d bytes are held, %d were before", after, before)
	}
	if h.tidy() {
		t.Error("twice")
	}
	runtime.KeepAlive(&pool)
}
