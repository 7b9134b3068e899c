package cgroup

import (
	"context"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// units tells systemd of limits, so that its next daemon-reload does not undo
// them; it reports whether systemd took them.
type units interface {
	set(ctx context.Context, unit string, properties []dbus.Property) bool
}

// A bus is the connection to systemd, made when first needed.
type bus struct {
	log *slog.Logger

	mu   sync.Mutex // guards conn, and is not held while one is made
	conn *dbus.Conn
}

// set never fails: the limits are in force already. What systemd cannot be
// told is logged.
func (b *bus) set(ctx context.Context, unit string, properties []dbus.Property) bool {
	if len(properties) == 0 {
		return false
	}
	conn, err := b.connection(ctx)
	if err == nil {
		err = conn.SetUnitPropertiesContext(ctx, unit, true, properties...)
	}
	if err != nil {
		b.log.Warn("systemd does not know the limits of a container: its next daemon-reload may undo them",
			"unit", unit, "error", err)
		return false
	}
	return true
}

func (b *bus) connection(ctx context.Context) (*dbus.Conn, error) {
	b.mu.Lock()
	old := b.conn
	b.mu.Unlock()
	if old != nil && old.Connected() {
		return old, nil
	}
	// It lives as long as its context: ctx bounds how long it takes to make it.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, end)
	conn, err := dbus.NewWithContext(life)
	if !stop() && err == nil {
		conn.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		end()
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != old { // somebody else's was there first
		conn.Close()
		return b.conn, nil
	}
	b.conn = conn
	return conn, nil
}

// byBytes are the properties that are numbers of bytes, or of tasks, by the file.
var byBytes = map[string]string{
	"memory.max": "MemoryMax", "memory.high": "MemoryHigh", "memory.low": "MemoryLow", "memory.min": "MemoryMin",
	"memory.swap.max": "MemorySwapMax", "memory.limit_in_bytes": "MemoryLimit", "pids.max": "TasksMax",
}

// known are the files that systemd has properties for, in the order told.
var known = []string{
	"cpu.weight", "cpu.max", "memory.max", "memory.high", "memory.low", "memory.min", "memory.swap.max",
	"cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "memory.limit_in_bytes", "pids.max",
}

// inForce returns what p's files hold that systemd knows of, and those changed.
func inForce(p Place, changed []Value) []Value {
	var all []Value
	add := func(file string) {
		text, err := readFile(filepath.Split(file))
		if v := (Value{file, text}); err == nil && !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	for _, dir := range p.Dirs {
		for _, name := range known {
			add(filepath.Join(dir, name))
		}
	}
	for _, v := range changed {
		add(v.File)
	}
	return all
}

// properties translates values into a scope's. systemd has none for huge pages,
// and for few of the other files.
//
// systemd: systemd.resource-control(5), org.freedesktop.systemd1(5).
func properties(values []Value) []dbus.Property {
	var all []dbus.Property
	add := func(name string, value any) {
		all = append(all, dbus.Property{Name: name, Value: godbus.MakeVariant(value)})
	}
	quota, period := "", ""
	for _, v := range values {
		name := filepath.Base(v.File)
		switch name {
		case "cpu.weight":
			add("CPUWeight", limitOf(v.Text))
		case "cpu.shares":
			add("CPUShares", limitOf(v.Text))
		case "cpu.max":
			quota, period, _ = strings.Cut(v.Text, " ")
		case "cpu.cfs_quota_us":
			quota = v.Text
			if period == "" {
				period, _ = readFile(filepath.Dir(v.File), "cpu.cfs_period_us")
			}
		case "cpu.cfs_period_us":
			period = v.Text
		case "cpuset.cpus", "cpuset.mems":
			if _, err := os.Stat(filepath.Join(filepath.Dir(v.File), "cgroup.controllers")); err != nil {
				continue // v1, of which systemd does not touch these
			}
			add(map[string]string{"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}[name], bitmap(v.Text))
		default:
			if property, ok := byBytes[name]; ok {
				add(property, limitOf(v.Text))
			}
		}
	}
	if period != "" {
		add("CPUQuotaPeriodUSec", limitOf(period))
	}
	if quota != "" {
		add("CPUQuotaPerSecUSec", perSecond(limitOf(quota), limitOf(period)))
	}
	return all
}

// limitOf reads a value of a control file; what is no number, or below 0, is no limit.
func limitOf(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n >= unlimitedV1 {
		return math.MaxUint64
	}
	return n
}

// bitmap turns a list such as 0-3,8 into bits, the lowest first.
func bitmap(list string) []byte {
	bits := []byte{}
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 16)
		to, lastErr := strconv.ParseUint(last, 10, 16)
		if err != nil || lastErr != nil {
			continue
		}
		for n := from; n <= to; n++ {
			for uint64(len(bits)) <= n/8 {
				bits = append(bits, 0)
			}
			bits[n/8] |= 1 << (n % 8)
		}
	}
	return bits
}

// perSecond returns the microseconds of CPU a second, in whole percents as
// systemd keeps them: rounded up.
func perSecond(quota, period uint64) uint64 {
	if quota == math.MaxUint64 {
		return quota
	}
	if period == math.MaxUint64 || period == 0 {
		period = 100_000 // the kernel's
	}
	const percent = 10_000
	return (quota*1_000_000/period + percent - 1) / percent * percent
}
