// Package validate checks the requests of the CRI, before anything is done:
// what is wrong by the CRI, by the kernel, or on this node.
//
// It is pure, but for asking a Node what its handlers can do; what needs the
// disk, an image or the state of a pod is checked where that is used. Package
// cri calls it.
package validate

import (
	"net/netip"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/davit-runtime/davit/internal/fault"
)

// A Handler is one RuntimeClass handler.
type Handler struct {
	Name    string
	Default bool // also listed under the empty name
	// RecursiveReadOnly: mounts can be made read-only with all below them.
	RecursiveReadOnly bool
	// UserNamespaces: containers can have user namespaces and ID-mapped mounts.
	UserNamespaces bool
	// HostNetworkUsers: so can those of a pod on the host's network.
	HostNetworkUsers bool
}

// A Node is what requests are checked against.
type Node struct {
	Handlers func() []Handler // in any order; one of them the default; may have to find out first
	AppArmor bool             // the kernel enforces it
}

// A Check keeps what is found wrong first in a request. Its error names the
// field as the protobuf does: "config.metadata.name: is empty".
type Check struct{ Err error }

func (c *Check) fail(kind fault.Kind, field, format string, args ...any) {
	if c.Err == nil {
		// The field may hold a key of the caller's, which is no format.
		c.Err = fault.New(kind, "", "%s: "+format, append([]any{field}, args...)...)
	}
}

// Bad notes a field that no runtime could accept.
func (c *Check) Bad(field, format string, args ...any) { c.fail(fault.Invalid, field, format, args...) }

// lacking notes a field that is right by the CRI, but that davit cannot do.
func (c *Check) lacking(field, format string, args ...any) {
	c.fail(fault.Unimplemented, field, format, args...)
}

// Set requires a value.
func (c *Check) Set(field, value string) {
	if value == "" {
		c.Bad(field, "is empty")
	}
}

// Text refuses what cannot pass through exec, mount or a C string.
func (c *Check) Text(field, value string) {
	if strings.ContainsRune(value, 0) {
		c.Bad(field, "contains a zero byte")
	}
}

// Name requires a name that people and logs can show.
func (c *Check) Name(field, value string) {
	c.Set(field, value)
	if len(value) > 253 {
		c.Bad(field, "is %d bytes long, at most 253 are allowed", len(value))
	}
	if strings.ContainsFunc(value, func(r rune) bool { return !unicode.IsPrint(r) || unicode.IsSpace(r) || r == '/' }) {
		c.Bad(field, "%q contains a slash, a space or an unprintable character", value)
	}
}

// Absolute requires an absolute path.
func (c *Check) Absolute(field, value string) {
	c.Set(field, value)
	c.Text(field, value)
	if !filepath.IsAbs(value) {
		c.Bad(field, "%q is not an absolute path", value)
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

// Enum requires a value that the protobuf names, and returns its name.
func (c *Check) Enum(field string, value int32, names map[int32]string) string {
	name, ok := names[value]
	if !ok {
		c.Bad(field, "%d is not a known value", value)
	}
	return name
}

func (c *Check) address(field, value string) {
	if _, err := netip.ParseAddr(value); err != nil {
		c.Bad(field, "%q is not an IP address", value)
	}
}

// Timeout requires seconds that are not negative; there may be any number.
func (c *Check) Timeout(field string, seconds int64) {
	if seconds < 0 {
		c.Bad(field, "%d is negative", seconds)
	}
}
