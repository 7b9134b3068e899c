package image

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/store"
)

// A lease keeps the layers below a container's writable layer. It is a file in
// the directory of that, so both come and go together. It is not fsynced: a
// power cut that takes it has ended the container, too.
type lease struct {
	Image  string
	Layers []string // topmost first
}

const leaseVersion = 1

func leaseFile(writable string) string { return filepath.Join(writable, "lease.json") }

// readLeases returns the leases by container ID.
func readLeases(dir string, log *slog.Logger) (map[string]lease, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	leases := make(map[string]lease, len(entries))
	for _, e := range entries {
		var l lease
		err := store.LoadJSON(leaseFile(filepath.Join(dir, e.Name())), leaseVersion, &l)
		if err != nil && !fault.Is(err, fault.NotFound) {
			log.Warn("a container's lease on its image cannot be read", "container", e.Name(), "error", err)
		}
		leases[e.Name()] = l
	}
	return leases, nil
}

// makeDir makes a directory unless it is there.
func makeDir(path string, perm fs.FileMode) error {
	err := os.Mkdir(path, perm)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return classify(err)
}
