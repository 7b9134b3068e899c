package stdio

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A logFile is a container's CRI log. Its methods are called under Streams.mu.
//
// A log that cannot be written never stops the container: what it writes is
// dropped and counted until writing works again.
type logFile struct {
	path    string
	fd      int // -1: could not be opened
	dev     uint64
	ino     uint64
	length  int64 // after the last whole batch
	lost    int64 // bytes dropped since the last success
	retryAt time.Time
}

// reopenPause is how long a log that cannot be opened is left alone.
const reopenPause = time.Second

// open makes the directory and the file where missing.
func (l *logFile) open() error {
	fd, err := openAppend(l.path)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(l.path), 0o755); err != nil {
			return err
		}
		fd, err = openAppend(l.path)
	}
	if err != nil {
		return err
	}
	return l.adopt(fd)
}

func openAppend(path string) (int, error) {
	const flags = unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK
	for {
		fd, err := unix.Open(path, flags, 0o640)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return fd, nil
	}
}

// adopt takes an open descriptor in place of the one it has.
func (l *logFile) adopt(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.Join(&os.PathError{Op: "open", Path: l.path, Err: errors.New("not a regular file")}, unix.Close(fd))
	}
	l.close()
	l.fd, l.dev, l.ino, l.length = fd, st.Dev, st.Ino, st.Size
	return nil
}

// rewind drops what was appended after the commit.
func (l *logFile) rewind(s slot) error {
	if l.fd < 0 || s.dev != l.dev || s.ino != l.ino || l.length <= s.length {
		return nil
	}
	if err := unix.Ftruncate(l.fd, s.length); err != nil {
		return err
	}
	l.length = s.length
	return nil
}

// append writes one batch of whole lines. What cannot be written whole is
// dropped, and its beginning taken back out of the file.
func (l *logFile) append(batch []byte) error {
	if l.fd < 0 {
		if now := time.Now(); now.Before(l.retryAt) {
			l.lost += int64(len(batch))
			return nil
		} else if err := l.open(); err != nil {
			l.retryAt = now.Add(reopenPause)
			l.lost += int64(len(batch))
			return err
		}
	}
	for done := 0; done < len(batch); {
		n, err := unix.Write(l.fd, batch[done:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			l.lost += int64(len(batch))
			if done > 0 {
				_ = unix.Ftruncate(l.fd, l.length)
			}
			return err
		}
		done += n
	}
	// Where the file really ends now: somebody may have truncated it meanwhile.
	if end, err := unix.Seek(l.fd, 0, unix.SEEK_CUR); err == nil {
		l.length = end
	} else {
		l.length += int64(len(batch))
	}
	return nil
}

func (l *logFile) close() {
	if l.fd >= 0 {
		_ = unix.Close(l.fd)
		l.fd = -1
	}
}
