package layer

// NoOpenat2 is for tests of the way without that system call.
var NoOpenat2 = &noOpenat2

// MaxNoted is for tests that have no time for half a million directories.
var MaxNoted = &maxNoted
