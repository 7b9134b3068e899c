package layer

// NoOpenat2 is for tests of the way without that system call.
var NoOpenat2 = &noOpenat2
