// Package inflate decompresses gzip (RFC 1952, RFC 1951), which is what most of
// the work of a pull is. It does what compress/gzip does, bytes and refusals,
// and its tests hold it to that; it is made for long streams, and takes some
// 400 KiB for each.
//
// What makes it quick: 64 bits of input at hand, refilled without a branch;
// tables of which an entry is all there is to know of a symbol; and a window that is written straight through, 32 KiB of history
// before 224 KiB of room, so that a match is copied in words and what is given
// out was never copied before. Indices are masked by the sizes of arrays, by
// which the compiler knows that they are in bounds: there is no unsafe here.
//
// Package layer reads the blobs of layers with it.
package inflate
