package registry

import "strings"

// A challenge is one way to ask for access. Parameter names are in lower case.
type challenge struct {
	scheme string
	params map[string]string
}

// parseChallenges reads the values of a WWW-Authenticate header. What it cannot
// make sense of it passes over.
//
// RFC 9110, section 11.6.1: challenges are separated by commas, and so are the
// parameters of each; a parameter has "=" behind its name, a scheme has not.
func parseChallenges(headers []string) []challenge {
	var all []challenge
	for _, rest := range headers {
		for {
			rest = strings.TrimLeft(rest, " \t,")
			if rest == "" {
				break
			}
			name, after := cutToken(rest)
			if name == "" {
				rest = rest[1:]
				continue
			}
			value, isParam := strings.CutPrefix(strings.TrimLeft(after, " \t"), "=")
			if !isParam {
				all = append(all, challenge{scheme: name, params: map[string]string{}})
				rest = after
				continue
			}
			value, rest = cutValue(strings.TrimLeft(value, " \t"))
			if len(all) > 0 {
				all[len(all)-1].params[strings.ToLower(name)] = value
			}
		}
	}
	return all
}

func cutToken(s string) (token, rest string) {
	end := strings.IndexFunc(s, func(c rune) bool {
		return c <= ' ' || c >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c)
	})
	if end < 0 {
		end = len(s)
	}
	return s[:end], s[end:]
}

// cutValue reads a quoted string, or else all up to the next comma or blank.
func cutValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		if end := strings.IndexAny(s, ", \t"); end >= 0 {
			return s[:end], s[end:]
		}
		return s, ""
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:]
		case '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), ""
}
