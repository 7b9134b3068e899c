package erofs

import (
	"errors"
	"hash/maphash"
	"strings"

	"github.com/davit-runtime/davit/internal/fault"
)

// A tree is the layer's names, in memory and small: some 60 bytes for each,
// none of which the garbage collector looks at. A directory that is replaced
// by something else is forgotten with all that is in it.
type tree struct {
	names  [][]byte // pieces of nameChunk bytes
	used   uint32   // of the names
	nodes  table[node]
	dirs   table[dir]
	hashed []uint32 // numbers of nodes, by directory and name; 0 is free
	seed   maphash.Seed
	spent  int64 // bytes, see spend

	readLink func(inode uint64) (string, error)
	attrs    map[uint32][]xattr // of directories that have some
}

// A node is a name in a directory.
type node struct {
	inode uint64 // of a directory its number in dirs
	name  uint32 // where it is in names
	dir   uint32 // that it is in
	next  uint32 // in the same directory
	hash  uint32
	size  uint8 // of the name
	kind  uint8 // typeNone: there is nothing
	// flags
	linked   bool // others have the same inode, or had
	whiteout bool
}

// A dir is a directory.
type dir struct {
	node     uint32
	parent   uint32
	first    uint32 // node in it
	path     uint32 // length of its path
	mode     uint16
	implicit bool
	opaque   bool
	attrs    bool
	uid, gid uint32
	nanos    uint32
	seconds  int64

	// when all is known
	subdirs uint32
	inode   uint64
}

const (
	root      = 0 // as a directory
	nameChunk = 1 << 16

	// maxLinks is how many symbolic links Linux follows for one name.
	maxLinks = 40
)

// maxTree bounds the memory for a layer's names: a small blob can hold any
// number of files. It is enough for three million. Only tests change it.
var maxTree int64 = 256 << 20

// Why a name leads nowhere. The first two mean that there is nothing yet.
var (
	errNotThere = errors.New("no such file or directory")
	errNotDir   = errors.New("not a directory")
	errLoop     = errors.New("too many levels of symbolic links")
	errTooLong  = errors.New("the name is too long")
)

func newTree() *tree {
	t := &tree{hashed: make([]uint32, 256), seed: maphash.MakeSeed(), attrs: map[uint32][]xattr{}}
	t.nodes.add() // so that 0 is none
	t.dirs.add().implicit = true
	t.dirs.at(root).mode = 0o755
	return t
}

// spend accounts for memory.
func (t *tree) spend(n int) error {
	if t.spent += int64(n); t.spent > maxTree {
		return fault.New(fault.Unknown, "", "the layer has too many files: their names take more than %d MiB", maxTree>>20)
	}
	return nil
}

func (t *tree) name(n *node) []byte {
	return t.names[n.name/nameChunk][n.name%nameChunk:][:n.size]
}

func (t *tree) hash(dir uint32, name string) uint32 {
	h := maphash.String(t.seed, name) + uint64(dir)*0x9e3779b97f4a7c15
	return uint32(h>>32) ^ uint32(h)
}

// find returns a name's node; nil if there is none.
func (t *tree) find(dir uint32, name string) *node {
	h := t.hash(dir, name)
	mask := uint32(len(t.hashed) - 1)
	for i := h & mask; t.hashed[i] != 0; i = (i + 1) & mask {
		n := t.nodes.at(t.hashed[i])
		if n.hash == h && n.dir == dir && string(t.name(n)) == name {
			return n
		}
	}
	return nil
}

// lookup returns what is at a name; nil if nothing is.
func (t *tree) lookup(dir uint32, name string) *node {
	if n := t.find(dir, name); n != nil && n.kind != typeNone {
		return n
	}
	return nil
}

// set puts something at a name, in place of what is there. The name has been
// checked.
func (t *tree) set(dir uint32, name string, kind uint8, inode uint64) (*node, error) {
	n := t.find(dir, name)
	if n == nil {
		var err error
		if n, err = t.add(dir, name); err != nil {
			return nil, err
		}
	}
	n.kind, n.inode, n.linked, n.whiteout = kind, inode, false, false
	return n, nil
}

func (t *tree) add(dir uint32, name string) (*node, error) {
	if err := t.spend(48 + len(name)); err != nil {
		return nil, err
	}
	if len(t.names) == 0 || int(t.used%nameChunk)+len(name) > nameChunk || t.used%nameChunk == 0 {
		t.used = uint32(len(t.names)) * nameChunk
		t.names = append(t.names, make([]byte, nameChunk))
	}
	n := t.nodes.add()
	n.name, n.size, n.dir, n.hash = t.used, uint8(len(name)), dir, t.hash(dir, name)
	copy(t.names[t.used/nameChunk][t.used%nameChunk:], name)
	t.used += uint32(len(name))
	d := t.dirs.at(dir)
	n.next, d.first = d.first, t.nodes.count-1
	if int(t.nodes.count)*4 > len(t.hashed)*3 {
		t.hashed = make([]uint32, 2*len(t.hashed))
		for i := uint32(1); i < t.nodes.count; i++ {
			t.insert(i)
		}
	} else {
		t.insert(t.nodes.count - 1)
	}
	return n, nil
}

func (t *tree) insert(number uint32) {
	mask := uint32(len(t.hashed) - 1)
	i := t.nodes.at(number).hash & mask
	for t.hashed[i] != 0 {
		i = (i + 1) & mask
	}
	t.hashed[i] = number
}

// mkdir puts a directory at a name, in place of what is there, and returns its
// number. It is like one without an entry: 0755, of root.
func (t *tree) mkdir(parent uint32, name string) (uint32, error) {
	path := t.dirs.at(parent).path + 1 + uint32(len(name))
	if path > maxLink {
		return 0, errTooLong
	}
	if err := t.spend(96); err != nil {
		return 0, err
	}
	number := t.dirs.count
	if _, err := t.set(parent, name, typeDir, uint64(number)); err != nil {
		return 0, err
	}
	d := t.dirs.add()
	d.parent, d.mode, d.path = parent, 0o755, path
	d.node = t.number(parent, name)
	return number, nil
}

// number returns the number of the node of a name that has one.
func (t *tree) number(dir uint32, name string) uint32 {
	h := t.hash(dir, name)
	mask := uint32(len(t.hashed) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		n := t.nodes.at(t.hashed[i])
		if n.hash == h && n.dir == dir && string(t.name(n)) == name {
			return t.hashed[i]
		}
	}
}

// resolve returns the directory that a name leads to from dir, symbolic links
// followed as if the tree were the root of the file system: openat2(2),
// RESOLVE_IN_ROOT.
func (t *tree) resolve(dir uint32, name string) (uint32, error) {
	links := 0
	for name != "" {
		var element string
		element, name, _ = strings.Cut(name, "/")
		switch element {
		case "", ".":
			continue
		case "..":
			dir = t.dirs.at(dir).parent
			continue
		}
		n := t.lookup(dir, element)
		switch {
		case len(element) > maxName:
			return 0, errTooLong
		case n == nil:
			return 0, errNotThere
		case n.kind == typeDir:
			dir = uint32(n.inode)
			continue
		case n.kind != typeLink:
			return 0, errNotDir
		}
		if links++; links > maxLinks {
			return 0, errLoop
		}
		target, err := t.readLink(n.inode)
		if err != nil {
			return 0, err
		}
		if strings.HasPrefix(target, "/") {
			dir = root
		}
		name = target + "/" + name
	}
	return dir, nil
}

// path returns a directory's path, "." for the root.
func (t *tree) path(dir uint32) string {
	if dir == root {
		return "."
	}
	d := t.dirs.at(dir)
	p := make([]byte, d.path)
	for at := len(p); dir != root; dir = d.parent {
		d = t.dirs.at(dir)
		name := t.name(t.nodes.at(d.node))
		at -= len(name)
		copy(p[at:], name)
		at--
		p[at] = '/'
	}
	return string(p[1:])
}

// A table is a list that grows without being copied.
type table[T any] struct {
	chunks [][]T
	count  uint32
}

const tableChunk = 1 << 10

func (t *table[T]) at(i uint32) *T { return &t.chunks[i/tableChunk][i%tableChunk] }

func (t *table[T]) add() *T {
	if t.count%tableChunk == 0 {
		t.chunks = append(t.chunks, make([]T, tableChunk))
	}
	t.count++
	return t.at(t.count - 1)
}
