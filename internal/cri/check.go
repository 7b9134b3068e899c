package cri

import (
	"net/netip"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/davit-runtime/davit/internal/fault"
)

// A check keeps what is found wrong first in a request. Its error names the
// field as the protobuf does: "config.metadata.name: is empty".
type check struct{ err error }

func (c *check) fail(kind fault.Kind, field, format string, args ...any) {
	if c.err == nil {
		// The field may hold a key of the caller's, which is no format.
		c.err = fault.New(kind, "", "%s: "+format, append([]any{field}, args...)...)
	}
}

// bad notes a field that no runtime could accept.
func (c *check) bad(field, format string, args ...any) { c.fail(fault.Invalid, field, format, args...) }

// lacking notes a field that is right by the CRI, but that davit cannot do.
func (c *check) lacking(field, format string, args ...any) {
	c.fail(fault.Unimplemented, field, format, args...)
}

// set requires a value.
func (c *check) set(field, value string) {
	if value == "" {
		c.bad(field, "is empty")
	}
}

// text refuses what cannot pass through exec, mount or a C string.
func (c *check) text(field, value string) {
	if strings.ContainsRune(value, 0) {
		c.bad(field, "contains a zero byte")
	}
}

// name requires a name that people and logs can show.
func (c *check) name(field, value string) {
	c.set(field, value)
	if len(value) > 253 {
		c.bad(field, "is %d bytes long, at most 253 are allowed", len(value))
	}
	if strings.ContainsFunc(value, func(r rune) bool { return !unicode.IsPrint(r) || unicode.IsSpace(r) || r == '/' }) {
		c.bad(field, "%q contains a slash, a space or an unprintable character", value)
	}
}

// absolute requires an absolute path.
func (c *check) absolute(field, value string) {
	c.set(field, value)
	c.text(field, value)
	if !filepath.IsAbs(value) {
		c.bad(field, "%q is not an absolute path", value)
	}
}

// climbs reports whether a path has a ".." in it.
func climbs(path string) bool {
	for part := range strings.SplitSeq(path, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

// enum requires a value that the protobuf names, and returns its name.
func (c *check) enum(field string, value int32, names map[int32]string) string {
	name, ok := names[value]
	if !ok {
		c.bad(field, "%d is not a known value", value)
	}
	return name
}

func (c *check) address(field, value string) {
	if _, err := netip.ParseAddr(value); err != nil {
		c.bad(field, "%q is not an IP address", value)
	}
}

func (c *check) timeout(field string, seconds int64) {
	if seconds < 0 {
		c.bad(field, "%d is negative", seconds)
	}
}
