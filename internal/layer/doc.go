// Package layer is the layer store: it turns the tar streams of images into
// directories that overlayfs can stack, keeps them, and gives them up.
//
// A layer's ID is its diffID, the digest of its tar stream. Each layer is
// unpacked on its own, into a directory of its own, so layers of one image
// unpack at the same time and a layer is kept once however many images have
// it, above whatever other layers. Nothing of a stream ever reaches outside
// that directory.
//
// The one thing that cannot be known from a layer alone is what a directory
// looks like that the stream has entries below but no entry for: overlayfs
// takes owner, mode and attributes of a merged directory from the topmost
// layer that has it, so a made-up one would hide those of the layers below.
// Unpack therefore reports such directories (Info.Implicit), and Mend makes of
// them, for one stack of layers, one more layer to put on top, which has the
// right attributes and nothing else. Hardly any image needs it. The layers
// themselves stay independent of what they are stacked on.
//
// A layer that Unpack returned is complete, but durable only after Sync. Who
// writes the layer down (package image, in its database) does so after Sync;
// a layer nobody wrote down is deleted by the next OpenDirs.
//
// A layer that is malformed or hostile is an error of kind Unknown, a full disk
// one of kind Exhausted; neither leaves anything behind.
package layer

// Info is what a layer takes, and what is made up in it.
type Info struct {
	Bytes    uint64 // allocated on disk
	Inodes   uint64
	Implicit []string `json:",omitempty"` // directories without an entry of their own: "etc/x", "." for the root
}

// A Part is one layer of a stack.
type Part struct {
	ID       string
	Implicit []string // as in its Info
}
