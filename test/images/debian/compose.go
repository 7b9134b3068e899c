package debian

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/davit-runtime/davit/test/images/layout"
)

// A composer writes one layer. Names have no "./" before and no "/" after them.
type composer struct {
	*layout.TarWriter
	all  map[string]bool // names of this and all lower layers
	mine map[string]bool
}

// made is when all that no package has was last changed.
var made = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// moved are the directories that Debian has merged into /usr.
var moved = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"}

func merged(name string) string {
	name = path.Clean(strings.TrimPrefix(name, "./"))
	if first, _, _ := strings.Cut(name, "/"); slices.Contains(moved, first) {
		return "usr/" + name
	}
	return name
}

func (c *composer) put(h *tar.Header, data io.Reader) error {
	c.all[h.Name], c.mine[h.Name] = true, true
	if h.Typeflag == tar.TypeDir {
		h = new(*h)
		h.Name += "/"
	}
	if err := c.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	if h.Typeflag != tar.TypeReg || data == nil {
		return nil
	}
	_, err := io.Copy(c, data)
	return err
}

func (c *composer) dir(name string) error {
	if c.all[name] {
		return nil
	}
	return c.put(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: made}, nil)
}

func (c *composer) symlink(name, to string) error {
	return c.put(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777, ModTime: made}, nil)
}

func (c *composer) file(name, text string, records map[string]string) error {
	return c.put(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(text)), Mode: 0o644, ModTime: made, PAXRecords: records}, strings.NewReader(text))
}

// packages writes what is in packages, each directory once.
func (c *composer) packages(ctx context.Context, files []string, first bool) error {
	if first {
		if err := c.dir("usr"); err != nil {
			return err
		}
		for _, name := range moved {
			if err := errors.Join(c.dir("usr/"+name), c.symlink(name, "usr/"+name)); err != nil {
				return err
			}
		}
	}
	for _, file := range files {
		if err := c.unpack(ctx, file); err != nil {
			return fmt.Errorf("%s: %w", path.Base(file), err)
		}
	}
	return nil
}

func (c *composer) unpack(ctx context.Context, file string) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = c.copy(tar.NewReader(out))
	_, _ = io.Copy(io.Discard, out)
	return errors.Join(err, cmd.Wait())
}

func (c *composer) copy(r *tar.Reader) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		h.Name = merged(h.Name)
		if h.Name == "." || c.mine[h.Name] || h.Typeflag == tar.TypeDir && c.all[h.Name] && slices.Contains(moved, strings.TrimPrefix(h.Name, "usr/")) {
			continue
		}
		if h.Typeflag == tar.TypeLink {
			h.Linkname = merged(h.Linkname)
		}
		h.Format = tar.FormatUnknown
		if err := c.put(h, r); err != nil {
			return err
		}
	}
}

// changes is the last layer, as somebody's Dockerfile would end: what packages'
// scripts would have done, files removed and hidden, links, capabilities.
func (c *composer) changes() error {
	names := slices.Sorted(maps.Keys(c.all))
	var errs []error
	for _, name := range names {
		dir, base := path.Split(name)
		switch {
		case base == "libblas.so.3" && strings.HasSuffix(dir, "/blas/"), base == "liblapack.so.3" && strings.HasSuffix(dir, "/lapack/"):
			errs = append(errs, c.symlink(path.Dir(path.Clean(dir))+"/"+base, path.Base(dir)+"/"+base)) // as update-alternatives does
		case strings.HasPrefix(base, "changelog") && strings.HasSuffix(base, ".gz"):
			errs = append(errs, c.file(dir+".wh."+base, "", nil))
		}
	}
	errs = append(errs,
		c.dir("usr/share"), c.file("usr/share/.wh.man", "", nil), c.dir("usr/share/locale"), // hidden below
		c.put(&tar.Header{Typeflag: tar.TypeDir, Name: "usr/share/lintian", Mode: 0o755, ModTime: made}, nil),
		c.file("usr/share/lintian/.wh..wh..opq", "", nil),
		c.file("usr/share/lintian/instead", "hidden below this\n", nil),
		c.dir("srv"), c.dir("srv/app"), c.file("srv/app/program", strings.Repeat("an application\n", 20_000), map[string]string{
			// cap_net_bind_service in the effective and permitted sets; linux/capability.h, VFS_CAP_REVISION_2.
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		}))
	for i := range 300 {
		errs = append(errs, c.put(&tar.Header{Typeflag: tar.TypeLink, Name: fmt.Sprintf("srv/app/link%d", i), Linkname: "srv/app/program", Mode: 0o644, ModTime: made}, nil))
	}
	return errors.Join(errs...)
}
