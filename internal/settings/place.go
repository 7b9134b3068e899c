package settings

import (
	"bytes"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// A place is where a key stands, counted from 1; 0 for one that does not.
type place struct{ line, column int }

// find returns where a key stands, else where the table does that it belongs to.
func (f *File) find(key string) place {
	for {
		if p, ok := f.places[key]; ok {
			return p
		}
		dot := strings.LastIndexByte(key, '.')
		if dot < 0 {
			return place{}
		}
		key = key[:dot]
	}
}

// places returns where each key stands first, by its parts with dots between.
// The text is known to be TOML.
func places(data []byte) map[string]place {
	all := map[string]place{}
	p := unstable.Parser{}
	p.Reset(data)
	var keyValue func(e *unstable.Node, table []string)
	note := func(at []string, n *unstable.Node) {
		key := strings.Join(at, ".")
		if _, ok := all[key]; !ok {
			before := data[:n.Raw.Offset]
			all[key] = place{1 + bytes.Count(before, []byte("\n")), len(before) - bytes.LastIndexByte(before, '\n')}
		}
	}
	keyValue = func(e *unstable.Node, table []string) {
		at := append([]string(nil), table...)
		for it := e.Key(); it.Next(); {
			at = append(at, string(it.Node().Data))
			note(at, it.Node())
		}
		if v := e.Value(); v.Kind == unstable.InlineTable {
			for it := v.Children(); it.Next(); {
				if it.Node().Kind == unstable.KeyValue {
					keyValue(it.Node(), at)
				}
			}
		}
	}
	var table []string
	for p.NextExpression() {
		switch e := p.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = nil
			for it := e.Key(); it.Next(); {
				table = append(table, string(it.Node().Data))
				note(table, it.Node())
			}
		case unstable.KeyValue:
			keyValue(e, table)
		}
	}
	return all
}
