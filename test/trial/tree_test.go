package trial

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// readTree reads all that is below dir.
func readTree(dir string) (tree, error) {
	t := tree{}
	names := map[[2]uint64][]string{} // paths of files with several, by device (overlayfs shows each layer's) and inode
	err := filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
		if err != nil || at == dir {
			return err
		}
		var s unix.Stat_t
		if err := unix.Lstat(at, &s); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		line, err := describe(at, &s)
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(at, dir)
		t[name] = line
		if s.Nlink > 1 && !d.IsDir() {
			file := [2]uint64{s.Dev, s.Ino}
			names[file] = append(names[file], name)
		}
		return nil
	})
	for _, linked := range names {
		for _, name := range linked {
			t[name] += strings.Repeat(" linked", len(linked)-1)
		}
	}
	return t, err
}

// describe is what tree has of one file.
func describe(at string, s *unix.Stat_t) (string, error) {
	kind := map[uint32]byte{unix.S_IFREG: 'f', unix.S_IFDIR: 'd', unix.S_IFLNK: 'l', unix.S_IFIFO: 'p', unix.S_IFCHR: 'c', unix.S_IFBLK: 'b', unix.S_IFSOCK: 's'}[s.Mode&unix.S_IFMT]
	line := fmt.Sprintf("%c %04o %d:%d %d", kind, s.Mode&0o7777, s.Uid, s.Gid, s.Mtim.Sec)
	attributes, err := attributes(at)
	if err != nil {
		return "", err
	}
	line += attributes
	switch kind {
	case 'f':
		data, err := os.ReadFile(at)
		if err != nil {
			return "", err
		}
		if int64(len(data)) != s.Size {
			return "", fmt.Errorf("%s: its size is %d, it has %d bytes", at, s.Size, len(data))
		}
		line += fmt.Sprintf(" %x", sha256.Sum256(data))
	case 'l':
		to, err := os.Readlink(at)
		if err != nil {
			return "", err
		}
		line += " -> " + to
	}
	return line, nil
}

// attributes lists the extended attributes, but for overlayfs's own.
func attributes(at string) (string, error) {
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(at, buf)
	if err != nil {
		return "", fmt.Errorf("list attributes of %s: %w", at, err)
	}
	names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	text := ""
	for _, name := range names {
		if strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(at, name, buf)
		if err != nil {
			return "", fmt.Errorf("attribute %s of %s: %w", name, at, err)
		}
		text += fmt.Sprintf(" %s=%q", name, buf[:n])
	}
	return text, nil
}
