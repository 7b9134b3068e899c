package erofs

import (
	"bytes"
	"context"
	"slices"

	"github.com/davit-runtime/davit/internal/fault"
)

// maxImplicit bounds the names of directories without an entry.
const maxImplicit = 64 << 20

// A planned directory has got its place in the image.
type planned struct {
	number uint32 // in the tree
	from   uint32 // its names in order, up to that of the next
	size   int64  // of its content
	tail   int    // of that, bytes that are behind the inode
	attrs  []byte
}

// A finisher writes the directories, once all names are known.
type finisher struct {
	*builder
	order  []uint32 // nodes: of the first directory, sorted, then of the second …
	plan   []planned
	counts map[uint64]uint32 // how many names an inode has, if it had several
	inodes uint64
	inode  span // the room for directories' inodes
	data   span // and for their content, as far as it fills blocks

	own   [2]entryName // of the directory whose names are looked at
	block []entryName  // that is being filled
}

var dot = []byte("..")

// finish writes what is known only now, and the superblock.
func (b *builder) finish() (Summary, error) {
	f := &finisher{builder: b, counts: map[uint64]uint32{}}
	if err := b.space.closeAll(); err != nil {
		return Summary{}, err
	}
	implicit, err := f.walk()
	if err != nil {
		return Summary{}, err
	}
	if err := f.place(); err != nil {
		return Summary{}, err
	}
	if err := f.writeDirs(); err != nil {
		return Summary{}, err
	}
	attrs, err := b.space.append(b.shared.data)
	if err != nil {
		return Summary{}, err
	}
	if err := b.space.setLinks(f.counts); err != nil {
		return Summary{}, err
	}
	s := super{root: rootOffset / slotSize, inodes: f.inodes, blocks: uint64(b.space.end / blockSize), xattrBlock: uint32(attrs / blockSize), uuid: b.uuid}
	s.put(b.space.bytes(0, blockSize))
	sum, err := b.space.flushAll()
	return Summary{Bytes: b.space.end, Inodes: f.inodes, Implicit: implicit, Sum: sum}, err
}

// walk finds the directories that are still there, parents first, sorts what
// is in them, and counts. It returns the implicit ones.
func (f *finisher) walk() ([]string, error) {
	t := f.tree
	var implicit []string
	names := 0
	for todo := []uint32{root}; len(todo) > 0; {
		if f.ctx.Err() != nil {
			return nil, context.Cause(f.ctx)
		}
		number := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		d := t.dirs.at(number)
		if d.implicit {
			if names += int(d.path) + 16; names > maxImplicit {
				return nil, fault.New(fault.Unknown, "", "the layer has too many directories without an entry: their names take more than %d MiB", maxImplicit>>20)
			}
			implicit = append(implicit, t.path(number))
		}
		from := len(f.order)
		for n := d.first; n != 0; n = t.nodes.at(n).next {
			if t.nodes.at(n).kind != typeNone {
				f.order = append(f.order, n)
			}
		}
		in := f.order[from:]
		slices.SortFunc(in, func(a, b uint32) int { return bytes.Compare(t.name(t.nodes.at(a)), t.name(t.nodes.at(b))) })
		f.inodes++
		for _, number := range slices.Backward(in) {
			n := t.nodes.at(number)
			switch {
			case n.kind == typeDir:
				d.subdirs++
				todo = append(todo, uint32(n.inode))
				continue
			case n.linked:
				if f.counts[n.inode]++; f.counts[n.inode] > 1 {
					continue
				}
			}
			f.inodes++
		}
		f.plan = append(f.plan, planned{number: number, from: uint32(from)})
	}
	slices.Sort(implicit)
	return implicit, nil
}

// names calls f for each name in a planned directory, in order, with the
// number of its block.
func (f *finisher) names(i int, each func(name []byte, inode uint64, kind uint8) error) error {
	t := f.tree
	p := f.plan[i]
	d := t.dirs.at(p.number)
	to := uint32(len(f.order))
	if i+1 < len(f.plan) {
		to = f.plan[i+1].from
	}
	own := f.own[:]
	own[0], own[1] = entryName{dot[:1], d.inode, typeDir}, entryName{dot, t.dirs.at(d.parent).inode, typeDir}
	for _, number := range f.order[p.from:to] {
		n := t.nodes.at(number)
		name := t.name(n)
		for len(own) > 0 && bytes.Compare(own[0].name, name) < 0 {
			if err := each(own[0].name, own[0].inode, typeDir); err != nil {
				return err
			}
			own = own[1:]
		}
		inode := n.inode
		if n.kind == typeDir {
			inode = t.dirs.at(uint32(inode)).inode
		}
		if err := each(name, inode, n.kind); err != nil {
			return err
		}
	}
	for _, o := range own {
		if err := each(o.name, o.inode, typeDir); err != nil {
			return err
		}
	}
	return nil
}

const direntSize = 12 // before the names

// place gives each directory its place: inodes, with what is behind them, one
// after the other; the blocks of content in the same order after that.
func (f *finisher) place() error {
	at, blocks := int64(0), int64(0) // both from where they will begin
	places := make([]int64, len(f.plan))
	for i := range f.plan {
		p := &f.plan[i]
		d := f.tree.dirs.at(p.number)
		attrs := f.tree.attrs[p.number]
		if d.opaque {
			attrs = merge(attrs, []xattr{{indexTrusted, opaqueAttr, "y"}})
		}
		var err error
		if p.attrs, err = f.shared.encode(fitACL(attrs, d.mode)); err != nil {
			return broken(f.tree.path(p.number), err)
		}
		full, used := int64(0), 0
		err = f.names(i, func(name []byte, _ uint64, _ uint8) error {
			if used+direntSize+len(name) > blockSize {
				full, used = full+1, 0
			}
			used += direntSize + len(name)
			return nil
		})
		if err != nil {
			return err
		}
		p.size, p.tail = full*blockSize+int64(used), used
		room := blockSize - inodeSize - len(p.attrs)
		if i == 0 {
			room -= rootOffset
		}
		if p.tail > room {
			p.tail, full = 0, full+1
		}
		blocks += full
		if i == 0 {
			continue
		}
		need := int64(align(inodeSize+len(p.attrs)+p.tail, slotSize))
		if at%blockSize+need > blockSize {
			at = (at + blockSize) &^ (blockSize - 1)
		}
		places[i] = at
		at += need
	}
	var err error
	if f.inode.from, err = f.space.take(at); err != nil {
		return err
	}
	f.inode.to = f.space.end
	if f.data.from, err = f.space.take(blocks * blockSize); err != nil {
		return err
	}
	f.tree.dirs.at(root).inode = rootOffset / slotSize
	for i := 1; i < len(f.plan); i++ {
		f.tree.dirs.at(f.plan[i].number).inode = uint64(f.inode.from+places[i]) / slotSize
	}
	return nil
}

// writeDirs writes the directories to their places.
func (f *finisher) writeDirs() error {
	block := int64(-1) // of inodes, that is being filled
	next := f.data.from
	for i := range f.plan {
		if f.ctx.Err() != nil {
			return context.Cause(f.ctx)
		}
		p := &f.plan[i]
		d := f.tree.dirs.at(p.number)
		at := int64(d.inode) * slotSize
		if i > 0 && at&^(blockSize-1) != block {
			if block >= 0 {
				if err := f.space.finish(block, blockSize); err != nil {
					return err
				}
			}
			block = at &^ (blockSize - 1)
			clear(f.space.bytes(block, blockSize))
		}
		n := inode{
			mode: modeDir | d.mode, links: 2 + d.subdirs, uid: d.uid, gid: d.gid,
			seconds: d.seconds, nanos: d.nanos, size: p.size, xattrs: len(p.attrs),
		}
		if p.tail > 0 {
			n.layout = flatInline
		}
		if p.size > int64(p.tail) {
			n.u = uint32(next / blockSize)
		}
		slot := f.space.bytes(at, int64(inodeSize+len(p.attrs)+p.tail))
		n.put(slot, d.inode)
		copy(slot[inodeSize:], p.attrs)
		var err error
		if next, err = f.writeNames(i, next, slot[inodeSize+len(p.attrs):]); err != nil {
			return err
		}
	}
	if block >= 0 {
		return f.space.finish(block, blockSize)
	}
	return nil
}

// A name that is to be written.
type entryName struct {
	name  []byte
	inode uint64
	kind  uint8
}

// writeNames writes a directory's content: what fills blocks at offset next,
// and the rest to tail. It returns where the next directory's blocks begin.
func (f *finisher) writeNames(i int, next int64, tail []byte) (int64, error) {
	names, used := f.block[:0], 0
	flush := func() error {
		block := f.space.bytes(next, blockSize)
		putNames(block, names)
		err := f.space.finish(next, blockSize)
		next += blockSize
		names, used = names[:0], 0
		return err
	}
	err := f.names(i, func(name []byte, inode uint64, kind uint8) error {
		if used+direntSize+len(name) > blockSize {
			if err := flush(); err != nil {
				return err
			}
		}
		names = append(names, entryName{name, inode, kind})
		used += direntSize + len(name)
		return nil
	})
	f.block = names
	if err != nil {
		return 0, err
	}
	if f.plan[i].tail == 0 {
		return next, flush()
	}
	putNames(tail, names)
	return next, nil
}

// putNames writes one block of a directory, or what is used of it.
func putNames(p []byte, names []entryName) {
	at := direntSize * len(names)
	for i, e := range names {
		d := p[direntSize*i:]
		le.PutUint64(d, e.inode)
		le.PutUint16(d[8:], uint16(at))
		d[10], d[11] = e.kind, 0
		at += copy(p[at:], e.name)
	}
	clear(p[at:])
}

// append writes data to blocks of its own and returns where they are.
func (s *space) append(data []byte) (int64, error) {
	start, err := s.take(int64(len(data)))
	for at := start; err == nil && len(data) > 0; {
		p := s.bytes(at, s.end-at)
		n := copy(p, data)
		clear(p[n:])
		data = data[n:]
		err = s.finish(at, len(p))
		at += int64(len(p))
	}
	return start, err
}

// setLinks writes down how many names inodes have, if it is not one. Those
// that are in memory no more are changed in the file.
func (s *space) setLinks(counts map[uint64]uint32) error {
	var numbers []uint64
	for number, count := range counts {
		if count != 1 {
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	var old *chunk
	sum := func() {
		if old != nil {
			s.sums[old.index] = sumOf(old.data)
		}
	}
	for _, number := range numbers {
		at := int64(number)*slotSize + linksOffset
		index := at / chunkSize
		if i := slices.IndexFunc(s.chunks, func(c *chunk) bool { return c.index == index }); i >= 0 {
			c := s.chunks[i]
			if err := s.readWritten(c.data[:c.done], index*chunkSize); err != nil {
				return err
			}
			le.PutUint32(c.data[at%chunkSize:], counts[number])
			c.done, c.sum = 0, 0 // it is summed up and written again
			continue
		}
		if old == nil || old.index != index {
			sum()
			if old == nil {
				old = &chunk{data: make([]byte, chunkSize)}
			}
			old.index = index
			if err := s.readWritten(old.data, index*chunkSize); err != nil {
				return err
			}
		}
		p := old.data[at%chunkSize:][:4]
		le.PutUint32(p, counts[number])
		if err := s.writeAll(p, at); err != nil {
			return err
		}
	}
	sum()
	return nil
}
