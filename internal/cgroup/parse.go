package cgroup

import (
	"bytes"
	"math"
	"strconv"
)

// number reads the decimal digits that text starts with; "max" is Unlimited,
// and so is what does not fit.
func number(text []byte) uint64 {
	if bytes.HasPrefix(text, []byte("max")) {
		return Unlimited
	}
	var n uint64
	for _, c := range text {
		if c < '0' || c > '9' {
			break
		}
		if n > (math.MaxUint64-uint64(c-'0'))/10 {
			return Unlimited
		}
		n = n*10 + uint64(c-'0')
	}
	return n
}

// each calls f for each line "key value".
func each(text []byte, f func(key, value []byte)) {
	for len(text) > 0 {
		var line []byte
		line, text, _ = bytes.Cut(text, []byte("\n"))
		if key, value, ok := bytes.Cut(line, []byte(" ")); ok {
			f(key, value)
		}
	}
}

// takeV2 reads memory.stat. kernel: cgroup-v2.rst, "memory.stat".
func (m *Memory) takeV2(text []byte) {
	each(text, func(key, value []byte) {
		switch string(key) {
		case "anon":
			m.Anon = number(value)
		case "file":
			m.File = number(value)
		case "file_mapped":
			m.Mapped = number(value)
		case "active_file":
			m.ActiveFile = number(value)
		case "inactive_file":
			m.InactiveFile = number(value)
		case "kernel": // since 5.18
			m.Kernel = number(value)
		case "pgfault":
			m.Faults = number(value)
		case "pgmajfault":
			m.MajorFaults = number(value)
		}
	})
}

// takeV1 reads memory.stat, of which the total_ lines count those below, too.
// It puts into Limit the smallest limit from here up, and returns that of
// memory and swap together.
//
// kernel: cgroup-v1/memory.rst, "memory.stat"
func (m *Memory) takeV1(text []byte, swap *Swap) (both uint64) {
	m.Limit, both = Unlimited, Unlimited
	each(text, func(key, value []byte) {
		switch string(key) {
		case "hierarchical_memory_limit":
			m.Limit = unlimited(number(value))
		case "hierarchical_memsw_limit":
			both = unlimited(number(value))
		case "total_cache":
			m.File = number(value)
		case "total_rss":
			m.Anon = number(value)
		case "total_mapped_file":
			m.Mapped = number(value)
		case "total_swap": // with swap accounting only
			*swap = Swap{Usage: number(value), Known: true}
		case "total_active_file":
			m.ActiveFile = number(value)
		case "total_inactive_file":
			m.InactiveFile = number(value)
		case "total_pgfault":
			m.Faults = number(value)
		case "total_pgmajfault":
			m.MajorFaults = number(value)
		}
	})
	return both
}

// parsePressure reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and the
// same for "full", which CPUs have since 5.13. It returns nil if neither is there.
func parsePressure(text []byte) *Pressure {
	var p Pressure
	found := false
	each(text, func(key, value []byte) {
		var to *Stall
		switch string(key) {
		case "some":
			to = &p.Some
		case "full":
			to = &p.Full
		default:
			return
		}
		found = true
		for f := range bytes.FieldsSeq(value) {
			name, value, _ := bytes.Cut(f, []byte("="))
			switch string(name) {
			case "avg10":
				to.Avg10 = percent(value)
			case "avg60":
				to.Avg60 = percent(value)
			case "avg300":
				to.Avg300 = percent(value)
			case "total":
				to.TotalMicros = number(value)
			}
		}
	})
	if !found {
		return nil
	}
	return &p
}

func percent(text []byte) float64 {
	f, err := strconv.ParseFloat(string(text), 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return 0
	}
	return f
}
