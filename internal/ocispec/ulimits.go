package ocispec

import (
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Ulimits are what each container begins with, by the names of ulimit and
// limits.conf. What is not named is inherited from davit-keeper, and so comes
// from its service, or from the shell that davitd was started from.
type Ulimits map[string]Ulimit

// A Ulimit is "SOFT:HARD", or one value for both; "unlimited" is one.
type Ulimit struct{ soft, hard uint64 }

const unlimited = math.MaxUint64 // kernel: RLIM_INFINITY

// UnmarshalText reads one from configuration.
func (u *Ulimit) UnmarshalText(text []byte) error {
	soft, hard, both := strings.Cut(string(text), ":")
	if !both {
		hard = soft
	}
	var ok [2]bool
	u.soft, ok[0] = parseLimit(soft)
	u.hard, ok[1] = parseLimit(hard)
	if !ok[0] || !ok[1] {
		return fmt.Errorf(`%q is neither a number, nor "SOFT:HARD", nor "unlimited"`, text)
	}
	if u.soft > u.hard {
		return fmt.Errorf("%q: the first is above the second, which is its limit", text)
	}
	return nil
}

// MarshalText writes one as UnmarshalText reads it.
func (u Ulimit) MarshalText() ([]byte, error) {
	if u.soft == u.hard {
		return []byte(formatLimit(u.hard)), nil
	}
	return []byte(formatLimit(u.soft) + ":" + formatLimit(u.hard)), nil
}

func formatLimit(n uint64) string {
	if n == unlimited {
		return "unlimited"
	}
	return strconv.FormatUint(n, 10)
}

func parseLimit(text string) (n uint64, ok bool) {
	if text == "unlimited" {
		return unlimited, true
	}
	n, err := strconv.ParseUint(text, 10, 63)
	return n, err == nil
}

// limitNames are those of what the kernel limits. kernel: setrlimit(2).
var limitNames = []string{
	"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack",
}

// Check says by bad what this host does not know or allow.
func (l Ulimits) Check(bad func(key, format string, args ...any)) {
	for name := range l {
		if !slices.Contains(limitNames, name) {
			bad(name, "is not one of %s", strings.Join(limitNames, ", "))
		}
	}
	text, _ := os.ReadFile("/proc/sys/fs/nr_open")
	if most, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil && l["nofile"].hard > most {
		bad("nofile", "the kernel allows %d at most (sysctl fs.nr_open)", most)
	}
}

// Of returns a Make that adds the limits.
func (l Ulimits) Of(build func(Input) (*specs.Spec, error)) func(Input) (*specs.Spec, error) {
	if len(l) == 0 {
		return build
	}
	var all []specs.POSIXRlimit
	for _, name := range slices.Sorted(maps.Keys(l)) {
		all = append(all, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(name), Soft: l[name].soft, Hard: l[name].hard})
	}
	return func(in Input) (*specs.Spec, error) {
		spec, err := build(in)
		if err == nil {
			spec.Process.Rlimits = slices.Clone(all) // plugins may change them
		}
		return spec, err
	}
}
