package cri

import (
	"iter"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/davit-runtime/davit/internal/fault"
)

// batchBytes is how long a message of a streamed list becomes before the next
// one begins: short enough for clients that keep gRPC's own limit of 4 MiB.
const batchBytes = 1 << 20

// sizeIn is the length of an item within the repeated field, below 16, of a message.
func sizeIn(item proto.Message) int { return 1 + protowire.SizeBytes(proto.Size(item)) }

// inBatches sends items in order, each once, some in each message. An item
// that is longer than a message should be goes alone. Without items nothing is
// sent.
//
// CRI: api.proto, StreamContainers, and KEP-5825.
func inBatches[T proto.Message](items iter.Seq[T], send func([]T) error) error {
	var batch []T
	size := 0
	for item := range items {
		n := sizeIn(item)
		if len(batch) > 0 && size+n > batchBytes {
			if err := send(batch); err != nil {
				return err
			}
			batch, size = nil, 0 // gRPC may still read what it was given
		}
		batch = append(batch, item)
		size += n
	}
	if len(batch) == 0 {
		return nil
	}
	return send(batch)
}

// inOne returns all items for one message. Exhausted if they would make it
// longer than clients receive; stream names the call that has no such limit.
func inOne[T proto.Message](items iter.Seq[T], stream string) ([]T, error) {
	var all []T
	size := 0
	for item := range items {
		if size += sizeIn(item); size > maxMessageBytes {
			return nil, fault.New(fault.Exhausted, "", "the list is longer than the %d MiB of one message: use %s, or a filter", maxMessageBytes>>20, stream)
		}
		all = append(all, item)
	}
	return all, nil
}
