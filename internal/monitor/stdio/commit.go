package stdio

import (
	"fmt"
	"os"
	"runtime/debug"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A commitFile says how far a container's output has come, such that a monitor
// that is killed between any two instructions can be followed by one that
// neither loses nor repeats a byte. It is a file on a tmpfs, mapped: two slots
// and the number of the one that counts, so that a commit is one store.
//
// The protocol of one round, for one stream:
//
//	splice  FIFO → staging pipe     nothing is lost: the keeper holds both pipes
//	tee     staging → scratch, read scratch, append lines to the log
//	commit  {log file and length, unfinished line of each stream, stale = bytes read}
//	drain   stale bytes from staging, then stale = 0
//
// The next round's splice comes only when stale is 0. A successor truncates
// the log to the committed length, and drains what is left of the stale bytes:
// staging has total − stale bytes once they are gone.
type commitFile struct {
	data []byte // the mapping
}

// A slot's fields; offsets are those of this struct, in host order.
type slot struct {
	dev, ino uint64
	length   int64  // of the log file
	stream   uint32 // the one that stale is about
	total    uint32 // bytes in its staging pipe when committed
	stale    uint32 // of these, how many are in the log: to be drained; atomic
	carried  [2]uint32
	areas    uint32 // bit n: which of its two areas has stream n's unfinished line
}

// Layout: index, then both slots in the first page; then the unfinished lines,
// whose pages exist only once used.
const (
	slotSize    = 64
	firstSlot   = 64
	firstCarry  = 4096
	commitBytes = firstCarry + 2*2*maxLine
)

func openCommit(path string) (*commitFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(commitBytes); err != nil {
		return nil, err
	}
	// What is allocated now cannot fault later for want of space.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, firstCarry); err != nil {
		return nil, &os.PathError{Op: "allocate", Path: path, Err: err}
	}
	data, err := unix.Mmap(int(f.Fd()), 0, commitBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return &commitFile{data}, nil
}

func (c *commitFile) close() {
	_ = unix.Munmap(c.data)
	c.data = nil
}

func (c *commitFile) index() *uint32 { return (*uint32)(unsafe.Pointer(&c.data[0])) }

func (c *commitFile) active() uint32 { return atomic.LoadUint32(c.index()) & 1 }

func (c *commitFile) slot(i uint32) *slot {
	return (*slot)(unsafe.Pointer(&c.data[firstSlot+int(i)*slotSize]))
}

// area is one of a stream's two places for an unfinished line.
func (c *commitFile) area(stream int, areas uint32) []byte {
	from := firstCarry + (stream*2+int(areas>>stream&1))*maxLine
	return c.data[from : from+maxLine : from+maxLine]
}

// read returns what was committed last.
func (c *commitFile) read() slot { return *c.slot(c.active()) }

// carry returns a stream's unfinished line; it is valid until the next commit.
func (c *commitFile) carry(stream int) []byte {
	s := c.read()
	n := min(s.carried[stream], maxLine)
	if n == 0 {
		return nil
	}
	return c.area(stream, s.areas)[:n]
}

// commit replaces the active slot; the other stream's unfinished line stays.
// carry may be the one that the method carry returned. It returns an error,
// and commits nothing, if the file system has no room for carry; there is
// always room for an empty one.
func (c *commitFile) commit(s slot, carry []byte) error {
	old, stream := c.read(), int(s.stream)
	s.carried, s.areas = old.carried, old.areas^1<<stream
	s.carried[stream] = uint32(len(carry))
	if err := store(c.area(stream, s.areas), carry); err != nil {
		return err
	}
	next := 1 - c.active()
	*c.slot(next) = s
	atomic.StoreUint32(c.index(), next)
	return nil
}

// store copies into the mapping. The kernel answers a page that it cannot
// allocate with SIGBUS.
func store(to, from []byte) (err error) {
	if len(from) == 0 {
		return nil
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("unfinished line not stored: %v", r)
		}
	}()
	copy(to, from)
	return nil
}

// drained says that the stale bytes are gone.
func (c *commitFile) drained() { atomic.StoreUint32(&c.slot(c.active()).stale, 0) }

// toDrain is how many bytes a successor must still drain from the staging pipe
// of s.stream, which holds inPipe bytes now.
func (s slot) toDrain(inPipe int) int {
	gone := max(0, int(s.total)-inPipe)
	return min(inPipe, max(0, int(s.stale)-gone))
}
