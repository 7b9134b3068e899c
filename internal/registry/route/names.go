package route

import (
	"strings"

	"github.com/distribution/reference"

	"github.com/davit-runtime/davit/internal/fault"
)

// names is what registries.conf says of short names. The zero value says
// nothing.
type names struct {
	search     []string
	searchFrom string // where search stands; empty if it stands nowhere
	mode       string // enforcing, permissive or disabled; empty: permissive
	modeFrom   string
	aliases    map[string]Setting
}

func (n *names) add(f *confFile, doc *document) error {
	if f.Unqualified != nil {
		key := []string{"unqualified-search-registries"}
		if doc.lines[path(key...)] == 0 {
			key = []string{"registries", "search", "registries"}
		}
		n.search, n.searchFrom = f.Unqualified, doc.at(key...)
		for _, registry := range n.search {
			if strings.ContainsRune(registry, '/') {
				return doc.bad("%q is not a registry as example.com:5000", []any{registry}, key...)
			}
		}
	}
	switch f.Mode {
	case "":
	case "enforcing", "permissive", "disabled":
		n.mode, n.modeFrom = f.Mode, doc.at("short-name-mode")
	default:
		return doc.bad("%q is not one of enforcing, permissive, disabled", []any{f.Mode}, "short-name-mode")
	}
	for _, short := range doc.keys("aliases") {
		full := f.Aliases[short]
		if full == "" {
			delete(n.aliases, short)
			continue
		}
		if named, err := reference.ParseNamed(full); err != nil || !reference.IsNameOnly(named) {
			return doc.bad("%q is not a full name without a tag", []any{full}, "aliases", short)
		}
		n.aliases[short] = Setting{Key: "aliases", Value: full, Source: doc.at("aliases", short)}
	}
	return nil
}

// A candidate is a full name that a reference may mean.
type candidate struct {
	Named reference.Named
	From  *Setting // what made it of a short name; nil if it was none
}

// candidates returns what a reference may mean. A short name is what an alias
// says, else it is searched for in the registries that are listed; where
// nothing is said of short names they are Docker Hub's.
func (n *names) candidates(ref string) ([]candidate, error) {
	named, err := parse(ref)
	if err != nil {
		return nil, err
	}
	short, suffix, isShort := cutShort(ref)
	if !isShort {
		return []candidate{{Named: named}}, nil
	}
	if alias, ok := n.aliases[short]; ok {
		full, err := parse(alias.Value + suffix)
		return []candidate{{full, &alias}}, err
	}
	switch {
	case n.searchFrom == "":
		return []candidate{{Named: named}}, nil
	case len(n.search) == 0:
		return nil, fault.New(fault.Precondition, "", "%q is a short name, and %s lists no registry to search for it: use a full name, or add an alias", ref, n.searchFrom)
	case len(n.search) > 1 && n.mode == "enforcing":
		return nil, fault.New(fault.Precondition, "", "%q is a short name, for which %s lists %s, and %s wants one to be chosen: use a full name, or add an alias",
			ref, n.searchFrom, strings.Join(n.search, ", "), n.modeFrom)
	}
	var all []candidate
	for _, registry := range n.search {
		full, err := parse(registry + "/" + short + suffix)
		if err != nil {
			return nil, err
		}
		all = append(all, candidate{full, &Setting{Key: "unqualified-search-registries", Value: registry, Source: n.searchFrom}})
	}
	return all, nil
}

// cutShort splits a short name from its tag and digest. A name is short if it
// does not begin with a registry: something with a dot, a port, or "localhost".
func cutShort(ref string) (name, suffix string, ok bool) {
	name = ref
	if i := strings.IndexByte(name, '@'); i >= 0 {
		name = name[:i]
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	first, _, slash := strings.Cut(name, "/")
	if slash && (strings.ContainsAny(first, ".:") || first == "localhost" || strings.ToLower(first) != first) {
		return "", "", false
	}
	return name, ref[len(name):], true
}
