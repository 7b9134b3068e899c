package ociruntime

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"strings"

	"github.com/davit-runtime/davit/internal/fault"
)

// Message gives the reason for a failure from what the runtime left in its
// error log (JSON lines) and on its standard error. The log's last line of
// level error wins; of standard error it is the last line. Empty if neither
// says anything.
func Message(errorLog, stderr []byte) string {
	message := ""
	for line := range bytes.Lines(errorLog) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) != nil || entry.Msg == "" {
			continue
		}
		switch entry.Level {
		case "", "error", "fatal", "panic":
			message = entry.Msg
		}
	}
	if message != "" {
		return clean(message)
	}
	for line := range bytes.Lines(stderr) {
		if text := strings.TrimSpace(string(line)); text != "" {
			message = text
		}
	}
	return clean(message)
}

// clean makes one printable line of at most 2,000 bytes.
func clean(text string) string {
	text = strings.ToValidUTF8(strings.TrimSpace(text), "?")
	text = strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, text)
	if len(text) > 2000 {
		text = strings.ToValidUTF8(text[:2000], "") + "…"
	}
	return text
}

// Classify makes an error of a failed command. err is what running it gave,
// message is from Message. Commands that cannot be run in the container are
// Invalid, an absent runtime is Unavailable, an unknown container NotFound.
func (r Runtime) Classify(command string, err error, message string) error {
	op := "ociruntime." + command
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return fault.New(fault.Unavailable, op, "OCI runtime %s cannot be run: %w", r.Path, err)
	}
	if message == "" {
		return fault.New(fault.Internal, op, "%s %s: %w", r.Path, command, err)
	}
	if lostCgroup(message) {
		return fault.New(fault.Invalid, op, "the container's first process was killed, the memory limit may be too low: %s", message)
	}
	return fault.New(kindOf(message), op, "%s", message)
}

// lostCgroup reports whether runc found the cgroup gone that it had put the
// container's first process in. systemd removes a scope with its last process,
// and then runc cannot read any more that the kernel killed that for want of
// memory, which is what it says elsewhere.
func lostCgroup(message string) bool {
	return strings.Contains(message, "setting cgroup config") &&
		(strings.Contains(message, "no such file or directory") || strings.Contains(message, "cannot get dir FD for "))
}

// kindOf classifies the texts of crun 1.x and runc 1.x.
func kindOf(message string) fault.Kind {
	text := strings.ToLower(message)
	has := func(parts ...string) bool {
		for _, p := range parts {
			if !strings.Contains(text, p) {
				return false
			}
		}
		return true
	}
	switch {
	case has("executable file", "not found"), has("exec: "), has("exec format error"),
		has("open executable"),                                                                  // of any sort: missing, a directory, not permitted
		has("not a directory"), has("is a directory"), has("too many levels of symbolic links"), // mounts
		has("memory limit"), has("out of range"), // limits
		has("writing file", "invalid argument"), has("failed to write", "invalid argument"):
		return fault.Invalid
	case has("container", "does not exist"), has("cannot find container"):
		return fault.NotFound
	case has("is not running"), has("not in the `created` state"), has("cannot start a container that has"),
		has("cannot exec in a stopped container"), has("cannot exec a container that has stopped"):
		return fault.Precondition
	case has("no space left"), has("disk quota"), has("resource temporarily unavailable"), has("cannot allocate memory"), has("too many open files"):
		return fault.Exhausted
	case has("not supported"), has("unknown command"):
		return fault.Unimplemented
	}
	return fault.Internal
}
