package cgroup

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// A Value is what a cgroup's file holds. Records keep it.
type Value struct{ File, Text string }

// changes are the values replaced so far, in order. The first error stays;
// after it nothing is written.
type changes struct {
	dry     bool    // only find out what would be replaced
	touched []Value // as they were before, each file once
	err     error
}

func (c *changes) refuse(kind fault.Kind, field, text string) {
	if c.err == nil {
		c.err = fault.New(kind, "", "%s: %s", field, text)
	}
}

// set writes a value because a field of the request says so.
func (c *changes) set(field, dir, name, value string) {
	if c.err != nil {
		return
	}
	before, err := readFile(dir, name)
	if err != nil {
		c.err = fault.New(kindOf(err), "", "%s: %w", field, err)
		return
	}
	file := filepath.Join(dir, name)
	note := func() {
		if !slices.ContainsFunc(c.touched, func(v Value) bool { return v.File == file }) {
			c.touched = append(c.touched, Value{file, before})
		}
	}
	if c.dry {
		note()
		return
	}
	if before == value {
		return
	}
	if err := writeFile(dir, name, value); err != nil {
		c.err = fault.New(fault.KindOf(err), "", "%s: %w", field, err)
		return
	}
	note()
}

func (c *changes) setText(field, dir, name, value string) {
	if value != "" {
		c.set(field, dir, name, value)
	}
}

// setIfThere tolerates that the file is missing with its controller.
func (c *changes) setIfThere(field, dir, name, value string) {
	if _, err := readFile(dir, name); errors.Is(err, fs.ErrNotExist) {
		return
	}
	c.set(field, dir, name, value)
}

// putBack writes values, the last first, in any order that the kernel accepts: what
// it refuses is tried again after the others. Files that are gone do not count.
func putBack(values []Value) error {
	left := slices.Clone(values)
	slices.Reverse(left)
	for {
		var refused []Value
		var errs []error
		for _, v := range left {
			err := putOne(v)
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
				refused, errs = append(refused, v), append(errs, fault.New(fault.KindOf(err), "", "put back %w", err))
			}
		}
		if len(refused) == 0 || len(refused) == len(left) {
			return errors.Join(errs...)
		}
		left = refused
	}
}

// putOne writes one value, line by line, as files with a line for each device have it.
func putOne(v Value) error {
	dir, name := filepath.Split(v.File)
	now, err := readFile(dir, name)
	if err != nil || now == v.Text {
		return err
	}
	if name == "io.max" { // a device whose limits are gone is not listed
		for line := range strings.Lines(now) {
			if device, _, ok := strings.Cut(line, " "); ok && !strings.Contains("\n"+v.Text, "\n"+device+" ") {
				if err := writeFile(dir, name, device+" rbps=max wbps=max riops=max wiops=max"); err != nil {
					return err
				}
			}
		}
	}
	for line := range strings.SplitSeq(v.Text, "\n") {
		if line == "" && name == "io.max" {
			continue
		}
		// An empty set of CPUs needs at least this to be written.
		if err := writeFile(dir, name, line+"\n"); err != nil {
			return err
		}
	}
	return nil
}
