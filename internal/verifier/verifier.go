// Package verifier asks programs whether an image may be pulled, by the protocol
// of containerd's "bindir" image verifiers, so that programs made for that one
// work here, too. It knows nothing of signatures. cmd/davitd hands it to package
// image, which asks before it fetches anything but the manifest.
//
// containerd: docs/image-verification.md
package verifier

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// DefaultDir is where containerd looks for verifiers.
const DefaultDir = "/opt/containerd/image-verifier/bin"

// A Dir is a directory of verifiers. All files in it are asked about each
// image, in the order of their names, and all have to agree; without any, or
// without the directory, every image is welcome.
type Dir struct {
	Path    string
	Timeout time.Duration // of one verifier; 10 s if zero
	Max     int           // how many are asked, the others being left out; 0: all
	Log     *slog.Logger  // gets what they write to standard error, at debug level
}

// maxOutput is how much of what a verifier writes is read.
const maxOutput = 32 << 10

// Verify asks about the image that was asked for by name, which stands for what
// d describes. Files are looked for each time.
//
// An image that is refused, or about which a verifier cannot be asked, is an
// error of kind Unknown whose text the kubelet knows.
//
// kubernetes: pkg/kubelet/images/image_manager.go, evalCRIPullErr.
func (v *Dir) Verify(ctx context.Context, name string, d imagespec.Descriptor) error {
	entries, err := os.ReadDir(v.Path) // sorted
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return failed("%w", err)
	}
	for i, e := range entries {
		if v.Max > 0 && i >= v.Max {
			v.Log.Warn("there are more image verifiers than may be asked", "directory", v.Path, "verifiers", len(entries), "asked", v.Max)
			return nil
		}
		reason, err := v.ask(ctx, e.Name(), name, d)
		var exit *exec.ExitError
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &exit) && exit.Exited():
			refused := failed("verifier %s refuses image %s, %s (exit code %d): %s", e.Name(), name, d.Digest, exit.ExitCode(), reason)
			if ran, ok := errors.AsType[*fault.Program](err); ok {
				refused = &fault.Program{Line: ran.Line, Said: ran.Said, Err: refused}
			}
			return refused
		case err != nil:
			return failed("verifier %s, asked about image %s: %w", e.Name(), name, err)
		}
		v.Log.Debug("an image verifier agrees", "verifier", e.Name(), "image", name, "digest", d.Digest, "reason", reason)
	}
	return nil
}

func failed(format string, args ...any) error {
	return fault.New(fault.Unknown, "", "SignatureValidationFailed: "+format, args...)
}

// ask runs one verifier and returns the reason that it gives. When its time is
// over it is killed, with what it started and did not move away.
func (v *Dir) ask(ctx context.Context, program, name string, d imagespec.Descriptor) (reason string, err error) {
	limit := v.Timeout
	if limit == 0 {
		limit = 10 * time.Second
	}
	errTooLong := fmt.Errorf("no answer within %s", limit)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTooLong)
	defer cancel()
	descriptor, err := json.Marshal(d)
	if err != nil {
		return "", err
	}
	stdout, stderr := &head{}, &head{}
	cmd := exec.CommandContext(ctx, filepath.Join(v.Path, program),
		"-name", name, "-digest", d.Digest.String(), "-stdin-media-type", imagespec.MediaTypeDescriptor)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(descriptor), stdout, stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second // for who keeps its output open
	err = cmd.Run()
	if text := stderr.line(); text != "" {
		v.Log.Debug("an image verifier says", "verifier", program, "image", name, "text", text)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it has ended by itself, with 0
	}
	return stdout.line(), fault.Ran(err, cmd.Args, stderr.data, stdout.data)
}

// A head keeps the beginning of what is written to it.
type head struct{ data []byte }

// Write implements io.Writer.
func (h *head) Write(p []byte) (int, error) {
	h.data = append(h.data, p[:min(len(p), maxOutput-len(h.data))]...)
	return len(p), nil
}

// line returns what was written, fit for one line of a log.
func (h *head) line() string {
	text := strings.TrimSpace(string(h.data))
	if len(h.data) == maxOutput {
		text += "…"
	}
	return strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return ' '
	}, text)
}
