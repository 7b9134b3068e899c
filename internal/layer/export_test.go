package layer

import "github.com/davit-runtime/davit/internal/layer/mount"

// NoOpenat2 is for tests of the way without that system call.
var NoOpenat2 = &noOpenat2

// MaxNoted is for tests that have no time for half a million directories.
var MaxNoted = &maxNoted

// ByLoop makes a store mount through loop devices.
func ByLoop(s *Store) { s.files.way = mount.Loop }

// WithoutMounts makes a store as on a kernel without EROFS.
func WithoutMounts(s *Store) { s.files.way, s.kind = mount.None, Directories }
