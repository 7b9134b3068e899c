package validate

import (
	"strings"
	"testing"
)

// FuzzNames: whatever is given as a name never panics, and no sysctl passes
// that would reach beyond its folder.
func FuzzNames(f *testing.F) {
	f.Add("net.ipv4.ip_forward")
	f.Add("net/ipv4/conf/eth0.1/../../kernel")
	f.Add("0-3,8")
	f.Fuzz(func(t *testing.T, s string) {
		var c Check
		c.sysctls("s", map[string]string{s: "1"}, nil)
		// As namespaces write it: dots part folders, a slash is a dot in a name.
		path := strings.Map(swapped, dotted(s))
		if c.Err == nil && climbs(path) {
			t.Errorf("%q passes", s)
		}
		c = Check{}
		c.cpuset("c", s)
		c.cgroupParent("p", s)
		c.hostname("h", s, false)
		c.Name("n", s)
	})
}
