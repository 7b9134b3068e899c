// Package holder is the first process of a shared PID namespace: it reaps what
// is left to it and ends on SIGTERM. Inside the pod it is called "pause", as
// the first process of such pods is everywhere else.
//
// Started with a third argument, it enters the user namespace of descriptor 3,
// becomes its root, and leaves a child of its parent's that goes on as above in
// a new PID namespace, which that user namespace owns. The child's pid goes to
// descriptor 4, in 8 bytes. A program of several threads could not do it.
//
// Pods may have one each, so it is a program of some hundred bytes instead of
// a Go program: two pages of memory, and started in half a millisecond. Its
// instructions stand in program_*.s; Open puts an ELF header before them. It
// never opens a file, allocates, or makes a thread. davit-monitor starts it,
// and package idmap where a process is needed for a moment.
package holder

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Where the assembler has put the program.
var programStart, programEnd *byte

// Both are addresses and never called.
//
//lint:ignore U1000 the assembler's
func program()

//lint:ignore U1000 the assembler's
func afterProgram()

// Open makes a file in memory that holds the program. It cannot be changed any
// more, not even by a pod's root, who can open it as /proc/1/exe.
func Open() (*os.File, error) {
	image, err := build()
	if err != nil {
		return nil, err
	}
	const name = "davit-monitor" // as args[0] is
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err = f.Write(image); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// An ELF file's header and two program headers; elf(5).
type header struct {
	ident         [16]byte
	kind, machine uint16
	version       uint32
	entry         uint64
	segmentsAt    uint64
	_             uint64 // no sections
	_             uint32
	size          uint16
	segmentSize   uint16
	segments      uint16
	_             [3]uint16
	program       segment
	stack         segment
}

type segment struct {
	kind, flags                                 uint32
	_                                           uint64 // offset
	address, physical, fileSize, memSize, align uint64
}

const (
	loadAt    = 0x400000
	pageAlign = 0x10000 // arm64 may have pages of 64 KiB
	readable  = 4
	writable  = 2
	runnable  = 1
)

// build returns the program as an ELF file.
func build() ([]byte, error) {
	size := int(uintptr(unsafe.Pointer(programEnd)) - uintptr(unsafe.Pointer(programStart)))
	if size <= 0 || size > 1024 {
		return nil, errors.New("the linker has not kept the holder's program together")
	}
	h := header{
		ident:   [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, // 64 bits, little endian
		kind:    2,                                      // executable
		machine: map[string]uint16{"amd64": 62, "arm64": 183}[runtime.GOARCH], version: 1,
		segmentsAt: 64, size: 64, segmentSize: 56, segments: 2,
		stack: segment{kind: 0x6474e551, flags: readable | writable, align: 16},
	}
	begin := uint64(binary.Size(h))
	h.entry = loadAt + begin
	whole := begin + uint64(size)
	h.program = segment{kind: 1, flags: readable | runnable, address: loadAt, physical: loadAt, fileSize: whole, memSize: whole, align: pageAlign}
	var out bytes.Buffer
	if err := binary.Write(&out, binary.LittleEndian, h); err != nil {
		return nil, err
	}
	out.Write(unsafe.Slice(programStart, size))
	return out.Bytes(), nil
}
