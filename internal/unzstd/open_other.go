//go:build !amd64

package unzstd

// NewReader returns a Reader with nothing to read yet. It refuses frames that
// ask for a window of more than maxWindow bytes.
func NewReader(maxWindow int) Reader { return newLibrary(maxWindow) }
