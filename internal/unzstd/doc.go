// Package unzstd decompresses zstd (RFC 8878) with windows of up to a size that
// the caller says, without dictionaries, and without looking at the checksums
// of frames: its users have digests of what they read. On amd64 with BMI2 it
// does so itself, elsewhere by github.com/klauspost/compress/zstd, to whose
// bytes and refusals its tests hold it. It takes 2 MiB and the window for each stream.
//
// What makes it quick: sequences are first decoded, all of a block, and then
// carried out. So two blocks can be decoded side by side, since of one alone the
// processor mostly waits for the table's entry that says where in the stream to
// go on; and what matches copy from can be fetched into the cache before. Both
// is done in assembly, which is handed tables that it cannot leave and checks
// every place that a sequence names.
//
// Package layer reads the blobs of layers with it.
package unzstd
