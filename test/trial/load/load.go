// Package load has a davitd pull and remove images, and notes on its disk, in
// order among davitd's own writes, what it was asked for and what it answered.
package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// Marks says where the notes are: in blocks of a disk behind its file system.
// Each is a text, "EVENT REFERENCE", and zeros.
type Marks struct {
	Device string
	Offset int64
}

// Events.
const (
	Pulling  = "pulling"
	Pulled   = "pulled" // answered
	Removing = "removing"
)

const block = 4096

// A pen writes marks.
type pen struct {
	disk   *os.File
	at     int64
	buffer []byte // aligned, as O_DIRECT needs it
}

func (m Marks) open() (*pen, error) {
	// Not O_SYNC: that would have the disk write out what davitd has left in its cache.
	disk, err := os.OpenFile(m.Device, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	buffer := make([]byte, 2*block)
	skip := block - int(uintptr(unsafe.Pointer(&buffer[0]))%block)
	return &pen{disk, m.Offset, buffer[skip : skip+block]}, nil
}

func (p *pen) write(event, ref string) error {
	clear(p.buffer)
	copy(p.buffer, event+" "+ref)
	_, err := p.disk.WriteAt(p.buffer, p.at)
	p.at += block
	fmt.Println("load:", event, ref)
	return err
}

// Run pulls and removes images until so many were pulled: those that are not
// there, all at once or one after the other, and then some are removed.
func Run(ctx context.Context, c *testkit.Client, m Marks, refs []string, pulls int, seed uint64) (err error) {
	p, err := m.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.disk.Close()) }()
	random := rand.New(rand.NewPCG(seed, 2))
	present := map[string]bool{}
	for pulls > 0 {
		var absent []string
		for _, ref := range refs {
			if !present[ref] {
				absent = append(absent, ref)
			}
		}
		pulls -= len(absent)
		if err := pull(ctx, c, p, absent, 1+random.IntN(len(refs))); err != nil {
			return err
		}
		for _, ref := range refs {
			if present[ref] = random.IntN(3) == 0; present[ref] {
				continue
			}
			if err := p.write(Removing, ref); err != nil {
				return err
			}
			if _, err := c.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
				return err
			}
		}
	}
	return nil
}

func pull(ctx context.Context, c *testkit.Client, p *pen, refs []string, atOnce int) error {
	for _, ref := range refs {
		if err := p.write(Pulling, ref); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	answers := make(chan string, len(refs))
	for _, ref := range refs {
		group.Go(func() error {
			if _, err := c.Pull(ctx, ref); err != nil {
				return fmt.Errorf("pull %s: %w", ref, err)
			}
			answers <- ref
			return nil
		})
	}
	for range refs {
		select { // each answer is noted at once, while other pulls go on
		case ref := <-answers:
			if err := p.write(Pulled, ref); err != nil {
				return err
			}
		case <-ctx.Done():
			return errors.Join(group.Wait(), context.Cause(ctx))
		}
	}
	return group.Wait()
}
