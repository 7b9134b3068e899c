package inflate_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/davit-runtime/davit/internal/inflate"
	"github.com/davit-runtime/davit/internal/testkit"
)

var readers = []struct {
	name string
	open func(io.Reader) (io.Reader, error)
}{
	{"davit", func(r io.Reader) (io.Reader, error) { return inflate.NewReader(r) }},
	{"klauspost", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
	{"std", func(r io.Reader) (io.Reader, error) { return stdgzip.NewReader(r) }},
}

// BenchmarkReaders decompresses the files that DAVIT_INFLATE_FILES matches, by
// each reader in turn, and tells the best rate of each in CPU time, which other
// work on the machine hardly changes.
func BenchmarkReaders(b *testing.B) {
	files, _ := filepath.Glob(os.Getenv("DAVIT_INFLATE_FILES"))
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(filepath.Base(file), func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			best := make([]float64, len(readers))
			buf := make([]byte, 128<<10)
			for b.Loop() {
				for i, reader := range readers {
					begin := testkit.ThreadTime(b)
					r, err := reader.open(bytes.NewReader(data))
					if err != nil {
						b.Fatal(err)
					}
					n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf)
					if err != nil {
						b.Fatal(err)
					}
					best[i] = max(best[i], float64(n)/1e6/(testkit.ThreadTime(b)-begin).Seconds())
				}
			}
			for i, reader := range readers {
				b.ReportMetric(best[i], reader.name+"-MB/s")
			}
			b.ReportMetric(best[0]/best[1], "x-klauspost")
			b.ReportMetric(0, "ns/op")
		})
	}
}
