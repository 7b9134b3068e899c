package testkit

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// DiskUsage is what du says of a directory, in bytes and inodes.
func DiskUsage(t testing.TB, dir string) (size, inodes uint64) {
	t.Helper()
	for _, c := range []struct {
		option string
		to     *uint64
		unit   uint64
	}{{"-skx", &size, 1024}, {"-sx --inodes", &inodes, 1}} {
		out, err := exec.Command("sh", "-c", "du "+c.option+" "+dir).Output()
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseUint(strings.Fields(string(out))[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		*c.to = n * c.unit
	}
	return size, inodes
}
