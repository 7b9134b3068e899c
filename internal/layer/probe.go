package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/erofs"
	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/layer/mount"
)

// probe finds out how EROFS files in root can be mounted at a place below at,
// by mounting a small one: never by what a version promises. Kernels may lack
// extended attributes in EROFS alone, which layers need to hide what is below.
func probe(root, at string) (mount.Way, error) {
	image, err := probeImage()
	if err != nil {
		return mount.None, err
	}
	way, why := mount.Probe(image, root, at, checkProbe)
	if !fault.Is(why, fault.Exhausted) {
		return way, why
	}
	// A full disk must not cost the layers that are there: one of them will do.
	all, err := filepath.Glob(filepath.Join(root, "*"+suffix))
	if err != nil {
		return mount.None, err
	}
	for _, file := range all {
		if way, err := mount.Try(file, at, func(string) error { return nil }); err == nil {
			return way, nil
		}
	}
	return way, why
}

// try finds out whether the kernel mounts an image that came from elsewhere,
// which needs features: Unimplemented if not.
func (f *files) try(file string, features []string) error {
	err := f.way.Try(file, f.mounts)
	for _, refused := range []error{unix.EINVAL, unix.EOPNOTSUPP, unix.EUCLEAN, unix.EIO, unix.ENODATA} {
		if errors.Is(err, refused) {
			return fault.New(fault.Unimplemented, "", "this kernel does not mount the EROFS image%s: %w", lacking(features), refused)
		}
	}
	return err
}

// lacking names what an image needs and the kernel does not tell to have.
// Algorithms of compression are options of a kernel that it does not tell of.
//
// kernel: Documentation/ABI/testing/sysfs-fs-erofs (Linux 5.17)
func lacking(features []string) string {
	lacks := slices.DeleteFunc(slices.Clone(features), func(name string) bool {
		_, err := os.Stat("/sys/fs/erofs/features/" + name)
		return err == nil
	})
	if len(lacks) == 0 {
		return ""
	}
	return ", maybe for want of " + strings.Join(lacks, ", ")
}

// checkProbe checks that the image of probeImage shows what is in it.
func checkProbe(dir string) error {
	var value [8]byte
	if n, err := unix.Lgetxattr(filepath.Join(dir, "opaque"), opaqueAttr, value[:]); err != nil || string(value[:n]) != "y" {
		return fmt.Errorf("it shows no extended attributes: %q, %w", value[:n], err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "gone"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return fmt.Errorf("it shows no device: mode %o, %w", st.Mode, err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(data) != probeText {
		return fmt.Errorf("it shows other content: %q, %w", data, err)
	}
	return nil
}

const probeText = "davit"

func probeImage() ([]byte, error) {
	var stream bytes.Buffer
	w := tar.NewWriter(&stream)
	for _, h := range []tar.Header{
		{Name: "opaque/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "opaque/" + whiteoutOpaque, Typeflag: tar.TypeReg},
		{Name: whiteoutPrefix + "gone", Typeflag: tar.TypeReg},
		{Name: "file", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(probeText))},
	} {
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
	}
	if _, err := io.WriteString(w, probeText); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	image := &memory{}
	_, err := erofs.Build(context.Background(), &stream, image, erofs.Options{Limit: 1 << 20}) //nolint:forbidigo // some KiB in memory
	return image.data, err
}

// A memory is a small file in memory.
type memory struct{ data []byte }

// WriteAt implements io.WriterAt.
func (m *memory) WriteAt(p []byte, at int64) (int, error) {
	if end := int(at) + len(p); end > len(m.data) {
		m.data = append(m.data, make([]byte, end-len(m.data))...)
	}
	return copy(m.data[at:], p), nil
}

// ReadAt implements io.ReaderAt.
func (m *memory) ReadAt(p []byte, at int64) (int, error) {
	return bytes.NewReader(m.data).ReadAt(p, at)
}
