package unzstd_test

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/davit-runtime/davit/internal/testkit"
	"github.com/davit-runtime/davit/internal/unzstd"
)

// BenchmarkReaders decompresses the files that DAVIT_UNZSTD_FILES matches, by
// the reader and the library in turn, and tells the median of how many times as
// fast the reader is, in CPU time, which other work on the machine hardly changes.
func BenchmarkReaders(b *testing.B) {
	files, _ := filepath.Glob(os.Getenv("DAVIT_UNZSTD_FILES"))
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(filepath.Base(file), func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			library, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderLowmem(true), zstd.IgnoreChecksum(true))
			if err != nil {
				b.Fatal(err)
			}
			defer library.Close()
			readers := []unzstd.Reader{unzstd.NewReader(128 << 20), library}
			if !bytes.Equal(sumBy(b, readers[0], data), sumBy(b, readers[1], data)) {
				b.Fatal("other bytes than the library's")
			}
			buf := make([]byte, 128<<10)
			var size int64
			var ratios, took []float64
			for b.Loop() {
				var t [2]float64
				for i, r := range readers {
					begin := testkit.ThreadTime(b)
					if err := r.Reset(bytes.NewReader(data)); err != nil {
						b.Fatal(err)
					}
					if size, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf); err != nil {
						b.Fatal(err)
					}
					t[i] = (testkit.ThreadTime(b) - begin).Seconds()
				}
				ratios, took = append(ratios, t[1]/t[0]), append(took, t[0])
			}
			slices.Sort(ratios)
			b.ReportMetric(float64(size)/1e6/slices.Min(took), "MB/s")
			b.ReportMetric(ratios[len(ratios)/2], "x-klauspost")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func sumBy(b *testing.B, r unzstd.Reader, data []byte) []byte {
	b.Helper()
	h := sha256.New()
	if err := r.Reset(bytes.NewReader(data)); err != nil {
		b.Fatal(err)
	}
	if _, err := io.Copy(h, r); err != nil {
		b.Fatal(err)
	}
	return h.Sum(nil)
}
