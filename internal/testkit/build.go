package testkit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Top returns the directory that holds go.mod.
func Top() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("not below the directory that holds go.mod")
}

// Binaries builds davitd, davit-monitor and davit, once, and returns the
// directory they are in. DAVIT_BIN names one where they are built already;
// DAVIT_RACE=1 builds them with the race detector.
var Binaries = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("DAVIT_BIN"); dir != "" {
		return filepath.Abs(dir)
	}
	top, err := Top()
	if err != nil {
		return "", err
	}
	dir, cgo := filepath.Join(top, "bin"), "CGO_ENABLED=0"
	args := []string{"build", "-trimpath", "-buildvcs=false"}
	if os.Getenv("DAVIT_RACE") != "" {
		dir, cgo = filepath.Join(dir, "race"), "CGO_ENABLED=1"
		args = append(args, "-race")
	}
	unlock, err := lock(dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	cmd := exec.Command("go", append(args, "-o", dir+"/", "./cmd/...")...)
	cmd.Dir = top
	cmd.Env = append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build ./cmd/...: %w\n%s", err, out)
	}
	return dir, nil
})

// lock keeps the packages that `go test` runs side by side from building into
// the same directory at once.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}
