// Package erofs makes EROFS images of layers' tar streams, and reads such
// images. It mounts nothing, knows no registry and no store: streams and files
// in, files and values out. Package layer calls it.
//
// Build makes an image in one pass, without a temporary tree: names are
// resolved in a tree in memory, so none leads out of it. What a layer may be
// like, what whiteouts do and which directories count as implicit is the same
// as for layers that are unpacked into directories (package layer).
//
// An image needs no feature that Linux 5.4 does not have. It is made of the
// stream alone: the same stream gives the same image, bit for bit.
//
// Beside the image Build tells how to make the tar stream of it again: the
// recipe. Rebuild follows it.
//
// A layer or an image that is malformed or hostile is an error of kind Unknown;
// one that is larger than allowed, or a full disk, of kind Exhausted. Errors of
// the stream keep their own kind. Memory is bounded whatever the layer is like.
package erofs
