package settings

import (
	"encoding"
	"reflect"
	"slices"
	"strings"
)

// anyName stands in a known key for a part that the file's author chooses.
const anyName = "*"

// walk calls see for each key that a t has, tables among them; at is the key of
// t itself.
func walk(t reflect.Type, at []string, see func(key []string)) {
	switch {
	case leaf(t):
	case t.Kind() == reflect.Map:
		key := append(slices.Clone(at), anyName)
		see(key)
		walk(t.Elem(), key, see)
	default:
		for i := range t.NumField() {
			field := t.Field(i)
			name := field.Tag.Get("toml")
			switch {
			case name != "":
				key := append(slices.Clone(at), name)
				see(key)
				walk(field.Type, key, see)
			case field.Anonymous:
				walk(field.Type, at, see)
			}
		}
	}
}

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

// leaf reports whether a key of type t has no keys below it.
func leaf(t reflect.Type) bool {
	return t.Kind() != reflect.Map && t.Kind() != reflect.Struct || reflect.PointerTo(t).Implements(textUnmarshaler)
}

// Changed returns the keys whose values differ between a and b, which are
// structs of one type, in the order of their fields; of tables that only one
// has, the table.
func Changed(a, b any) []string {
	return changed(reflect.ValueOf(a), reflect.ValueOf(b), nil)
}

func changed(a, b reflect.Value, at []string) []string {
	var all []string
	t := a.Type()
	switch {
	case leaf(t):
		empty := t.Kind() == reflect.Slice && a.Len() == 0 && b.Len() == 0 // nil or not
		if !empty && !reflect.DeepEqual(a.Interface(), b.Interface()) {
			return []string{strings.Join(at, ".")}
		}
	case t.Kind() == reflect.Map:
		names := map[string]bool{}
		for _, key := range slices.Concat(a.MapKeys(), b.MapKeys()) {
			names[key.String()] = true
		}
		for name := range names {
			key := append(slices.Clone(at), name)
			x, y := a.MapIndex(reflect.ValueOf(name)), b.MapIndex(reflect.ValueOf(name))
			if x.IsValid() && y.IsValid() {
				all = append(all, changed(x, y, key)...)
			} else {
				all = append(all, strings.Join(key, "."))
			}
		}
		slices.Sort(all)
	default:
		for i := range t.NumField() {
			name := t.Field(i).Tag.Get("toml")
			switch {
			case name != "":
				all = append(all, changed(a.Field(i), b.Field(i), append(slices.Clone(at), name))...)
			case t.Field(i).Anonymous:
				all = append(all, changed(a.Field(i), b.Field(i), at)...)
			}
		}
	}
	return all
}

// hint says which key of into may have been meant by one that it does not have:
// the most similar one of the same table, else one of that name elsewhere.
func hint(unknown []string, into any) string {
	last, table := unknown[len(unknown)-1], unknown[:len(unknown)-1]
	best, least := "", 1<<10
	elsewhere := ""
	walk(reflect.TypeOf(into).Elem(), nil, func(known []string) {
		name := known[len(known)-1]
		switch d := edits(last, name); {
		case name == anyName:
		case sameTable(known[:len(known)-1], table):
			if d < least && d <= max(1, len(name)/3) {
				best, least = name, d
			}
		case d == 0 && elsewhere == "" && !slices.Contains(known, anyName):
			elsewhere = strings.Join(known, ".")
		}
	})
	switch {
	case best != "":
		return "; did you mean " + strings.Join(append(slices.Clone(table), best), ".") + "?"
	case elsewhere != "":
		return "; did you mean " + elsewhere + "?"
	}
	return ""
}

func sameTable(known, table []string) bool {
	return slices.EqualFunc(known, table, func(k, t string) bool { return k == anyName || strings.EqualFold(k, t) })
}

// edits counts the letters to change, add, leave out or exchange with the next
// one that make b of a (optimal string alignment).
func edits(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		now := make([]int, len(b)+1)
		now[0] = i + 1
		for j := range len(b) {
			same := 1
			if a[i] == b[j] {
				same = 0
			}
			now[j+1] = min(last[j]+same, last[j+1]+1, now[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				now[j+1] = min(now[j+1], before[j-1]+1)
			}
		}
		before, last = last, now
	}
	return last[len(b)]
}
