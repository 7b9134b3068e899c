package erofs

// MaxTree is for tests that have no time for three million files.
var MaxTree = &maxTree

// FixChecksum makes the superblock's checksum that of the first block, so that
// what a test changed there is looked at.
func FixChecksum(image []byte) {
	if len(image) >= blockSize && le.Uint32(image[superOffset:]) == superMagic {
		p := image[superOffset:blockSize]
		le.PutUint32(p[4:], superChecksum(p))
	}
}
