package cri

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

func ofSizes(sizes ...int) []*runtimeapi.Container {
	var all []*runtimeapi.Container
	for i, n := range sizes {
		all = append(all, &runtimeapi.Container{Id: string(rune('a' + i)), Image: &runtimeapi.ImageSpec{Image: strings.Repeat("x", n)}})
	}
	return all
}

func TestInBatches(t *testing.T) {
	for name, test := range map[string]struct {
		sizes []int
		want  []int // items in each message
	}{
		"none":          {nil, nil},
		"one":           {[]int{1}, []int{1}},
		"some":          {[]int{1, 2, 3}, []int{3}},
		"cut":           {[]int{600_000, 600_000, 1}, []int{1, 2}},
		"long ones":     {[]int{5 << 20, 6 << 20, 1}, []int{1, 1, 1}},
		"just too long": {[]int{batchBytes / 2, batchBytes / 2}, []int{1, 1}},
	} {
		items := ofSizes(test.sizes...)
		var got []int
		var all []*runtimeapi.Container
		err := inBatches(slices.Values(items), func(batch []*runtimeapi.Container) error {
			got = append(got, len(batch))
			all = append(all, batch...)
			if n := proto.Size(&runtimeapi.StreamContainersResponse{Containers: batch}); n > batchBytes && len(batch) > 1 {
				t.Errorf("%s: a message of %d bytes", name, n)
			}
			return nil
		})
		if err != nil || !slices.Equal(got, test.want) || !slices.Equal(all, items) {
			t.Errorf("%s: messages of %v, %v, want %v", name, got, err, test.want)
		}
	}
	broken := errors.New("broken")
	n := 0
	err := inBatches(slices.Values(ofSizes(2<<20, 2<<20)), func([]*runtimeapi.Container) error { n++; return broken })
	if !errors.Is(err, broken) || n != 1 {
		t.Errorf("a stream that breaks: %v after %d messages", err, n)
	}
}

func TestInOne(t *testing.T) {
	items := ofSizes(8<<20, 8<<20-100)
	all, err := inOne(slices.Values(items), "StreamContainers")
	if n := proto.Size(&runtimeapi.ListContainersResponse{Containers: all}); err != nil || len(all) != 2 || n > maxMessageBytes {
		t.Errorf("%d of %d bytes, %v", len(all), n, err)
	}
	_, err = inOne(slices.Values(ofSizes(8<<20, 8<<20)), "StreamContainers")
	if !fault.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "use StreamContainers") {
		t.Errorf("too long: %v", err)
	}
}
