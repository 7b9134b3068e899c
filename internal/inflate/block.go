package inflate

// Lengths of the fixed codes (RFC 1951, 3.2.6).
var fixedLit, fixedDist = func() (lit [288]uint8, dist [32]uint8) {
	for i := range lit {
		switch {
		case i < 144:
			lit[i] = 8
		case i < 256:
			lit[i] = 9
		case i < 280:
			lit[i] = 7
		default:
			lit[i] = 8
		}
	}
	for i := range dist {
		dist[i] = 5
	}
	return lit, dist
}()

// codeOrder is how the lengths of the code for lengths are sent.
var codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// block reads the header of a block, or ends the member after the last.
func (r *Reader) block() error {
	if r.final {
		r.final = false
		r.at = atTrailer
		return nil
	}
	h, err := r.take(3)
	if err != nil {
		return err
	}
	r.final = h&1 != 0
	switch h >> 1 {
	case 0:
		return r.storedHeader()
	case 1:
		build(r.lit[:], litBits, fixedLit[:], litSymbols[:])
		build(r.dist[:], distBits, fixedDist[:], distSymbols[:])
	case 2:
		err = r.dynamicHeader()
	default:
		err = ErrCorrupt
	}
	if err != nil {
		return err
	}
	r.at = atCodes
	r.giveBack()
	return nil
}

func (r *Reader) storedHeader() error {
	r.giveBack()
	r.bits, r.n = 0, 0
	length, err := r.take(16)
	if err != nil {
		return err
	}
	inverse, err := r.take(16)
	if err != nil {
		return err
	}
	if length != ^inverse&0xffff {
		return ErrCorrupt
	}
	r.giveBack()
	r.stored = int(length)
	r.at = atStored
	return nil
}

// copyStored copies what there is of a stored block, as far as there is room.
func (r *Reader) copyStored() error {
	n := min(r.stored, r.end-r.pos, full-r.wr)
	copy(r.out[r.wr:], r.in[r.pos:r.pos+n])
	r.wr += n
	r.pos += n
	r.stored -= n
	switch {
	case r.stored == 0:
		r.at = atBlock
	case r.pos == r.end && r.err != nil:
		return r.short()
	}
	return nil
}

// dynamicHeader reads the lengths of a block's codes (RFC 1951, 3.2.7).
func (r *Reader) dynamicHeader() error {
	h, err := r.take(14)
	if err != nil {
		return err
	}
	nLit, nDist, nCode := h&31+257, h>>5&31+1, h>>10+4
	if nLit > maxLit || nDist > maxDist {
		return ErrCorrupt
	}
	var codeLengths [19]uint8
	for i := range nCode {
		n, err := r.take(3)
		if err != nil {
			return err
		}
		codeLengths[codeOrder[i]] = uint8(n)
	}
	// The table of distances has room for that of lengths, meanwhile.
	if !build(r.dist[:], 7, codeLengths[:], codeSymbols[:]) {
		return ErrCorrupt
	}
	var lengths [maxLit + maxDist]uint8
	if err := r.lengths(lengths[:nLit+nDist]); err != nil {
		return err
	}
	if !build(r.lit[:], litBits, lengths[:nLit], litSymbols[:]) || !build(r.dist[:], distBits, lengths[nLit:nLit+nDist], distSymbols[:]) {
		return ErrCorrupt
	}
	return nil
}

// lengths reads lengths of codes, which are run-length coded.
func (r *Reader) lengths(lengths []uint8) error {
	for i := 0; i < len(lengths); {
		if r.n < 14 { // a code and its extra bits
			r.more()
		}
		e := r.dist[r.bits&127]
		switch used := uint(e & 63); {
		case e&isOther != 0:
			return ErrCorrupt
		case used > r.n:
			return r.short()
		default:
			r.skip(used)
		}
		value, times, extra := uint8(0), 1, uint(0)
		switch symbol := uint8(e >> 16); symbol {
		case 16:
			if i == 0 {
				return ErrCorrupt
			}
			value, times, extra = lengths[i-1], 3, 2
		case 17:
			times, extra = 3, 3
		case 18:
			times, extra = 11, 7
		default:
			value = symbol
		}
		if extra > r.n {
			return r.short()
		}
		times += int(r.bits & (1<<extra - 1))
		r.skip(extra)
		if times > len(lengths)-i {
			return ErrCorrupt
		}
		for range times {
			lengths[i] = value
			i++
		}
	}
	return nil
}
