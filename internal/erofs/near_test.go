package erofs_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/davit-runtime/davit/internal/erofs"
	"github.com/davit-runtime/davit/internal/layer/layertest"
)

// A kernel reads inodes block by block, with a wait for each. They stand amid the
// content that they are of, where what is read ahead of content has them, and in
// blocks that are full.
func TestInodesAmidContent(t *testing.T) {
	random := rand.New(rand.NewPCG(0, 42))
	var entries []layertest.Entry
	packed := 0
	for i := range 2000 {
		size := 4096 + random.IntN(24<<10)
		packed += 64 + size%4096
		entries = append(entries, layertest.Entry{Name: fmt.Sprintf("f%d", i), Content: string(pattern(size, i))})
	}
	m := build(t, layertest.Tar(entries...))
	image, err := erofs.Open(m, m.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[uint64]bool{}
	err = image.Walk(context.Background(), func(e erofs.Entry) error {
		if e.Name != "." {
			blocks[e.Inode*32/4096] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for b := range blocks {
		if blocks[b+1] && blocks[b+2] {
			t.Errorf("blocks %d to %d have nothing but inodes", b, b+2)
		}
	}
	if most := packed + packed/20; len(blocks)*4096 > most {
		t.Errorf("inodes and ends of content take %d blocks, want at most %d", len(blocks), most/4096)
	}
}
