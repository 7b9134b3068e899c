package main

import (
	"fmt"
	"log/slog"
	"math"
	"regexp"
	"strings"
	"time"
)

// A duration is written as in "1h30m"; empty is for whoever takes it to choose.
// It is no time.Duration, which go-toml would take a number for, of unknown unit.
type duration string

// maxDuration is for what may take any time.
const maxDuration = time.Duration(math.MaxInt64)

// value is 0 for what check refuses, too.
func (d duration) value() time.Duration {
	parsed, _ := time.ParseDuration(string(d))
	return parsed
}

// check takes nothing, 0 and what is from least to most.
func (d duration) check(bad func(key, format string, args ...any), key string, least, most time.Duration) {
	if d == "" {
		return
	}
	switch v, err := time.ParseDuration(string(d)); {
	case err != nil:
		bad(key, "%q is not a time such as 90s or 1h30m", string(d))
	case v < 0:
		bad(key, "%v is negative", v)
	case v != 0 && (v < least || v > most):
		bad(key, "%v is not from %v to %v", v, least, most)
	}
}

// A logLevel is the name of one of slog's levels; empty is info.
type logLevel string

func (l logLevel) value() slog.Level {
	var level slog.Level
	_ = level.UnmarshalText([]byte(l)) // check has seen to that
	return level
}

// wrongType is the decoder's error for a value that does not fit, which names
// types of this program; go-toml has no other one for it.
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
	case goType == "main.duration":
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
