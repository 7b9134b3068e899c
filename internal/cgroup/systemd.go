package cgroup

import (
	"context"
	"log/slog"
	"math"
	"sync"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// units tells systemd of limits, so that its next daemon-reload does not undo
// them; it reports whether systemd took them.
type units interface {
	set(ctx context.Context, unit string, properties []dbus.Property) bool
}

// A bus is the connection to systemd, made when first needed.
type bus struct {
	log *slog.Logger

	mu   sync.Mutex // guards conn
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
	defer b.mu.Unlock()
	if b.conn != nil && b.conn.Connected() {
		return b.conn, nil
	}
	conn, err := dbus.NewWithContext(context.WithoutCancel(ctx)) // it lives as long as its context
	if err != nil {
		return nil, err
	}
	b.conn = conn
	return conn, nil
}

// properties translates resources into those of a scope. systemd has none for
// huge pages, and none for "unified" in general.
//
// systemd: systemd.resource-control(5), org.freedesktop.systemd1(5).
func properties(layout Layout, r *runtimeapi.LinuxContainerResources) []dbus.Property {
	var all []dbus.Property
	add := func(name string, value uint64) {
		all = append(all, dbus.Property{Name: name, Value: godbus.MakeVariant(value)})
	}
	v2 := layout == V2
	if r.CpuShares != 0 {
		if v2 {
			add("CPUWeight", uint64(cpuWeight(r.CpuShares)))
		} else {
			add("CPUShares", uint64(r.CpuShares))
		}
	}
	if r.CpuPeriod > 0 {
		add("CPUQuotaPeriodUSec", uint64(r.CpuPeriod))
	}
	if r.CpuQuota != 0 {
		add("CPUQuotaPerSecUSec", perSecond(r.CpuQuota, r.CpuPeriod))
	}
	if r.MemoryLimitInBytes != 0 {
		name := "MemoryLimit"
		if v2 {
			name = "MemoryMax"
		}
		add(name, infinite(r.MemoryLimitInBytes))
	}
	if both := r.MemorySwapLimitInBytes; both != 0 && v2 && (both < 0 || r.MemoryLimitInBytes > 0) {
		if both > 0 {
			both -= r.MemoryLimitInBytes
		}
		add("MemorySwapMax", infinite(both))
	}
	return all
}

// perSecond returns the microseconds of CPU a second, in whole percents as
// systemd keeps them: rounded up.
func perSecond(quota, period int64) uint64 {
	if quota < 0 {
		return math.MaxUint64
	}
	if period <= 0 {
		period = 100_000 // the kernel's
	}
	const percent = 10_000
	return (uint64(quota)*1_000_000/uint64(period) + percent - 1) / percent * percent
}

func infinite(n int64) uint64 {
	if n < 0 {
		return math.MaxUint64
	}
	return uint64(n)
}
