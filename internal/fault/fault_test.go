package fault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"
)

func TestKindOf(t *testing.T) {
	full := &fs.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}
	for _, test := range []struct {
		err  error
		want Kind
	}{
		{nil, Internal},
		{errors.New("x"), Internal},
		{New(Invalid, "op", "%w", New(NotFound, "", "x")), Invalid}, // the outermost
		{fmt.Errorf("step: %w", New(NotFound, "", "x")), NotFound},
		{fmt.Errorf("step: %w", context.Canceled), Canceled},
		{New(Unavailable, "", "%w", context.DeadlineExceeded), Unavailable},
		{New(Internal, "", "%w", context.Canceled), Internal},
		{full, Exhausted},
		{New(Internal, "op", "%w", full), Exhausted},
		{New(Unavailable, "op", "%w", full), Unavailable}, // known better
	} {
		if got := KindOf(test.err); got != test.want {
			t.Errorf("%v: %v, want %v", test.err, got, test.want)
		}
	}
}
