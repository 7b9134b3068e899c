package settings

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// A Problem is what is wrong with the value of a key.
type Problem struct {
	Key string // with dots between its parts
	Err error
}

// Bad returns a Problem.
func Bad(key, format string, args ...any) *Problem {
	return &Problem{Key: key, Err: fmt.Errorf(format, args...)}
}

func (p *Problem) Error() string { return p.Key + ": " + p.Err.Error() }

// Unwrap returns why.
func (p *Problem) Unwrap() error { return p.Err }

// A File is a TOML file that was read: it knows where keys stand. A nil one
// knows nothing.
type File struct {
	name   string
	places map[string]place
}

// Name is that of a file; empty for a nil one.
func (f *File) Name() string {
	if f == nil {
		return ""
	}
	return f.name
}

// Has reports whether a key, with dots between its parts, stands in the file.
func (f *File) Has(key string) bool {
	if f == nil {
		return false
	}
	_, ok := f.places[key]
	return ok
}

// Read decodes data, which the file name holds, into a pointer to a struct. An
// error has a line for each thing that is wrong. What explain says of a key that
// is unknown goes behind it; if that is nothing, a key that may have been meant.
func Read(name string, data []byte, into any, explain func(key toml.Key) string) (*File, error) {
	err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(into)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		var all []error
		for _, e := range unknown.Errors {
			line, column := e.Position()
			all = append(all, fmt.Errorf("%s:%d:%d: %s: unknown key%s", name, line, column, strings.Join(e.Key(), "."), cmp.Or(explain(e.Key()), hint(e.Key(), into))))
		}
		return nil, errors.Join(all...)
	case errors.As(err, &wrong):
		line, column := wrong.Position()
		key := strings.Join(wrong.Key(), ".")
		if at := places(data)[key]; line < at.line { // the decoder has lost it
			line, column = at.line, at.column
		}
		if key != "" {
			key += ": "
		}
		return nil, fmt.Errorf("%s:%d:%d: %s%s", name, line, column, key, plainType(strings.TrimPrefix(wrong.Error(), "toml: ")))
	case err != nil:
		return nil, fmt.Errorf("%s:%s: %w", name, blame(data, into, err), err)
	}
	return &File{name: name, places: places(data)}, nil
}

// blame returns "line:column: key" for an error of the decoder's without a
// position, as texts have that are none: the first line with which it comes.
func blame(data []byte, into any, err error) string {
	end, line := 0, 0
	for text := range bytes.Lines(data) {
		end, line = end+len(text), line+1
		again := toml.Unmarshal(data[:end], reflect.New(reflect.TypeOf(into).Elem()).Interface())
		if again == nil || again.Error() != err.Error() {
			continue
		}
		for key, at := range places(data[:end]) {
			if at.line == line {
				return fmt.Sprintf("%d:%d: %s", line, at.column, key)
			}
		}
		break
	}
	return fmt.Sprintf("%d:1", line)
}

// Locate says of all Problems that err joins, and of errors that begin with a
// key of the file, where the keys stand, in the order of the file. Other errors
// are left as they are, and come first.
func (f *File) Locate(err error) error {
	if f == nil || err == nil {
		return err
	}
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = slices.Clone(joined.Unwrap())
	}
	at := func(err error) place {
		if p := (*Problem)(nil); errors.As(err, &p) {
			return f.find(p.Key)
		}
		key, _, _ := strings.Cut(err.Error(), ": ")
		return f.places[key]
	}
	slices.SortStableFunc(all, func(a, b error) int {
		x, y := at(a), at(b)
		return cmp.Or(x.line-y.line, x.column-y.column, strings.Compare(a.Error(), b.Error()))
	})
	for i, err := range all {
		if p := at(err); p.line > 0 {
			all[i] = fmt.Errorf("%s:%d:%d: %w", f.name, p.line, p.column, err)
		} else if errors.As(err, new(*Problem)) {
			all[i] = fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return errors.Join(all...)
}

// wrongType is the decoder's error for a value that does not fit, which names
// types of the program; go-toml has no other one for it.
var wrongType = regexp.MustCompile(`^cannot decode TOML (.+?) into (?:a Go |struct field \S+ of type )?(\S+)$`)

// plainType says of such an error what was wanted, in the file's words.
func plainType(text string) string {
	m := wrongType.FindStringSubmatch(text)
	if m == nil {
		return text
	}
	var want string
	switch goType := m[2]; {
	case strings.HasPrefix(goType, "[]"):
		want = `a list, in [ ]`
	case strings.HasSuffix(goType, ".duration"):
		want = `a time in quotes, such as "90s"`
	case goType == "bool":
		want = "true or false"
	case strings.HasPrefix(goType, "int"):
		want = "a whole number"
	case strings.HasPrefix(goType, "map["), strings.HasSuffix(strings.ToLower(goType), "config"), goType == "route.Host":
		want = "a table of keys"
	default:
		want = "text in quotes"
	}
	return fmt.Sprintf("%s is not %s", m[1], want)
}
