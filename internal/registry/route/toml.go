package route

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/davit-runtime/davit/internal/fault"
)

// A document is a TOML file that was decoded, with what decoding loses: where
// a key stands, and the order of a table's keys.
type document struct {
	file  string
	lines map[string]int      // by path
	order map[string][]string // the keys of a table, by its path
}

const separator = "\x00" // of keys in a path; no key has it

// decode reads data into v. Keys that v does not have are passed over, as
// those do whose files these are.
func decode(file string, data []byte, v any) (*document, error) {
	if err := toml.Unmarshal(data, v); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, _ := at.Position()
			return nil, broken(file, line, "%s", strings.TrimPrefix(at.Error(), "toml: "))
		}
		return nil, broken(file, 0, "%s", strings.TrimPrefix(err.Error(), "toml: "))
	}
	d := &document{file: file, lines: map[string]int{}, order: map[string][]string{}}
	d.walk(data)
	return d, nil
}

// broken is the error of a file that cannot be used.
func broken(file string, line int, format string, args ...any) error {
	where := file
	if line > 0 {
		where = fmt.Sprintf("%s:%d", file, line)
	}
	return fault.New(fault.Precondition, "", where+": "+format, args...)
}

// walk notes where things are. The text is known to be TOML.
func (d *document) walk(data []byte) {
	p := unstable.Parser{}
	p.Reset(data)
	count := map[string]int{} // of the elements of arrays of tables
	lineOf := func(n *unstable.Node) int { return 1 + bytes.Count(data[:n.Raw.Offset], []byte("\n")) }
	var table []string
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			var line int
			table, line = nil, 0
			for it := e.Key(); it.Next(); {
				line = lineOf(it.Node())
				table = append(table, string(it.Node().Data))
				if n := count[path(table...)]; n > 0 && !(it.IsLast() && e.Kind == unstable.ArrayTable) {
					table = append(table, element(n-1))
				}
				d.note(table, line)
			}
			if e.Kind == unstable.ArrayTable {
				n := count[path(table...)]
				count[path(table...)]++
				table = append(table, element(n))
				d.note(table, line)
			}
		case unstable.KeyValue:
			d.keyValue(e, table, lineOf)
		}
	}
}

func (d *document) keyValue(e *unstable.Node, table []string, lineOf func(*unstable.Node) int) {
	at := append([]string(nil), table...)
	line := 0
	for it := e.Key(); it.Next(); {
		line = lineOf(it.Node())
		at = append(at, string(it.Node().Data))
		d.note(at, line)
	}
	d.value(e.Value(), at, line, lineOf)
}

func (d *document) value(v *unstable.Node, at []string, line int, lineOf func(*unstable.Node) int) {
	switch v.Kind {
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			if it.Node().Kind == unstable.KeyValue {
				d.keyValue(it.Node(), at, lineOf)
			}
		}
	case unstable.Array:
		n := 0
		for it := v.Children(); it.Next(); {
			if it.Node().Kind == unstable.Comment {
				continue
			}
			here := append(append([]string(nil), at...), element(n))
			d.note(here, line)
			d.value(it.Node(), here, line, lineOf)
			n++
		}
	}
}

func path(keys ...string) string { return strings.Join(keys, separator) }

// element is the key of an array's element.
func element(n int) string { return fmt.Sprintf("#%d", n) }

func (d *document) note(at []string, line int) {
	key := path(at...)
	if _, ok := d.lines[key]; ok {
		return
	}
	d.lines[key] = line
	parent := path(at[:len(at)-1]...)
	d.order[parent] = append(d.order[parent], at[len(at)-1])
}

// keys returns the keys of a table in the order of the file.
func (d *document) keys(table ...string) []string { return d.order[path(table...)] }

// at returns "file:line" of a key, and the file alone for one that is not there.
func (d *document) at(keys ...string) string {
	if line := d.lines[path(keys...)]; line > 0 {
		return fmt.Sprintf("%s:%d", d.file, line)
	}
	return d.file
}

// bad is an error about a key.
func (d *document) bad(format string, args []any, keys ...string) error {
	return broken(d.file, d.lines[path(keys...)], format, args...)
}
