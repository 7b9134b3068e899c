//go:build amd64

package unzstd

import (
	"math/bits"
	"slices"
)

// A coding is a table of a kind, as an encoder needs it. The values of symbols
// are those of the code that is tested: the library has its own.
type coding struct {
	log     int
	symbols []int // of states
	bits    []int
	next    []int
	of      [64][]int // states of a symbol
}

// symbolOf returns -1 if there is none.
func symbolOf(kind, v int) int {
	if kind == offsets {
		return bits.Len(uint(max(v, 0))) - 1
	}
	for s, k := range slices.Backward(kinds[kind].codes) {
		if v >= int(k.base) {
			if v >= int(k.base)+1<<k.bits {
				return -1
			}
			return s
		}
	}
	return -1
}

// newCoding is RFC 8878, 4.1.1, once more.
func newCoding(counts []int16, log int) *coding {
	size := 1 << log
	c := &coding{log: log, symbols: make([]int, size), bits: make([]int, size), next: make([]int, size)}
	taken := make([]bool, size)
	last := size
	for s, n := range counts {
		if n == -1 {
			last--
			c.symbols[last], taken[last] = s, true
		}
	}
	at := 0
	for s, n := range counts {
		for range max(n, 0) {
			for taken[at] {
				at = (at + size/2 + size/8 + 3) % size
			}
			c.symbols[at], taken[at] = s, true
		}
	}
	var x [64]int
	for s, n := range counts {
		x[s] = max(int(n), -int(n))
	}
	for state, s := range c.symbols {
		c.bits[state] = log + 1 - bits.Len(uint(x[s]))
		c.next[state] = x[s]<<c.bits[state] - size
		c.of[s] = append(c.of[s], state)
		x[s]++
	}
	return c
}

// packCounts writes a distribution that should add up to total.
func packCounts(counts []int16, log, total int) []byte {
	var w bitWriter
	w.put(log-5, 4)
	left := total
	for i := 0; i < len(counts) && left > 0; i++ {
		n, v := bits.Len(uint(left+1)), int(counts[i])+1
		threshold := 1<<n - 1 - (left + 1)
		switch {
		case v < threshold:
			w.put(v, n-1)
		case v < 1<<(n-1):
			w.put(v, n)
		default:
			w.put(v+threshold, n)
		}
		left -= max(v-1, 1-v)
		if v != 1 {
			continue
		}
		zeros := 0
		for i+1 < len(counts) && counts[i+1] == 0 {
			zeros, i = zeros+1, i+1
		}
		for ; zeros >= 3; zeros -= 3 {
			w.put(3, 2)
		}
		w.put(zeros, 2)
	}
	return w.out
}

// A bitWriter writes bits, the lowest of a byte first.
type bitWriter struct {
	out []byte
	n   int
}

func (w *bitWriter) put(v, n int) {
	for i := range n {
		if w.n&7 == 0 {
			w.out = append(w.out, 0)
		}
		w.out[len(w.out)-1] |= byte(v>>i&1) << (w.n & 7)
		w.n++
	}
}
