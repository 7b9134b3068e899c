package registry

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseChallenges(t *testing.T) {
	type params = map[string]string
	for _, c := range []struct {
		name    string
		headers []string
		want    []challenge
	}{
		{"none", nil, nil},
		{"bearer", []string{`Bearer realm="https://auth.example/token",service="registry, one",scope="a:b:pull"`}, []challenge{
			{"Bearer", params{"realm": "https://auth.example/token", "service": "registry, one", "scope": "a:b:pull"}},
		}},
		{"blanks and quotes", []string{`basic  Realm = "a \"b\" \\"  ,  charset=UTF-8`}, []challenge{
			{"basic", params{"realm": `a "b" \`, "charset": "UTF-8"}},
		}},
		{"two in one header", []string{`Negotiate, Basic realm="x", Bearer realm="y"`}, []challenge{
			{"Negotiate", params{}}, {"Basic", params{"realm": "x"}}, {"Bearer", params{"realm": "y"}},
		}},
		{"two headers", []string{`Basic realm="x"`, `Bearer realm="y"`}, []challenge{
			{"Basic", params{"realm": "x"}}, {"Bearer", params{"realm": "y"}},
		}},
		{"rubbish", []string{`,;= ""`, `="`, `realm="without a scheme"`}, nil},
		{"no closing quote", []string{`Bearer realm="x`}, []challenge{{"Bearer", params{"realm": "x"}}}},
	} {
		got := parseChallenges(c.headers)
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(challenge{})); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func FuzzParseChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a/token",service="b",scope="c"`)
	f.Add(`Negotiate, Basic realm = "x\"y", Digest qop="auth, auth-int"`)
	f.Fuzz(func(t *testing.T, header string) {
		for _, c := range parseChallenges([]string{header}) {
			if c.scheme == "" || c.params == nil {
				t.Errorf("%q: %+v", header, c)
			}
			for name := range c.params {
				if name == "" {
					t.Errorf("%q: a parameter without a name", header)
				}
			}
		}
	})
}
