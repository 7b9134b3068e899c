package registry

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/davit-runtime/davit/internal/fault"
)

// tokens is a token server that knows one user and one refresh token.
func tokens(t *testing.T) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		ok := r.Method == http.MethodGet && user == "ann" && password == "s3cret"
		if r.Method == http.MethodPost {
			ok = r.PostFormValue("refresh_token") == "r3fresh" && r.PostFormValue("grant_type") == "refresh_token"
		}
		if !ok || r.FormValue("scope") != "repository:a/b:pull" || r.FormValue("service") != "the registry" {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = fmt.Fprintf(w, `{"errors":[{"code":"NO","message":"%s"}]}`, password)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"access_token": "t0ken"})
	}))
	t.Cleanup(s.Close)
	return s
}

func TestAuth(t *testing.T) {
	server := tokens(t)
	bearer := fmt.Sprintf(`Bearer realm="%s/token",service="the registry",scope="repository:a/b:pull"`, server.URL)
	basicHeader := `Basic realm="here"`
	good := Auth{Username: "ann", Password: "s3cret"}
	bad := Auth{Username: "ann", Password: "wr0ng"}
	for _, c := range []struct {
		name, challenge string
		auth            Auth
		ok              bool
	}{
		{"basic", basicHeader, good, true},
		{"basic, wrong password", basicHeader, bad, false},
		{"basic, anonymous", basicHeader, Auth{}, false},
		{"bearer", bearer, good, true},
		{"bearer, wrong password", bearer, bad, false},
		{"bearer, anonymous", bearer, Auth{}, false},
		{"refresh token", bearer, Auth{IdentityToken: "r3fresh"}, true},
		{"wrong refresh token", bearer, Auth{IdentityToken: "wr0ng"}, false},
		{"given token", bearer, Auth{RegistryToken: "t0ken"}, true},
		{"wrong given token", bearer, Auth{RegistryToken: "wr0ng"}, false},
		{"unknown scheme", `Negotiate`, good, false},
		{"the one it knows", `Negotiate, ` + basicHeader, good, true},
		{"no challenge", ``, good, false},
		{"token server without a host", `Bearer realm="/token"`, good, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
				user, password, _ := r.BasicAuth()
				if r.Header.Get("Authorization") == "Bearer t0ken" || (user == "ann" && password == "s3cret" && c.challenge != bearer) {
					return false
				}
				w.Header().Set("WWW-Authenticate", c.challenge)
				w.WriteHeader(http.StatusUnauthorized)
				_, _ = fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":"%s"}]}`, password+strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
				return true
			})
			r := repository(t, Config{}, hostOf(s), c.auth)
			_, err := fetch(r)
			if c.ok {
				if err != nil {
					t.Error(err)
				}
				return
			}
			check(t, err, fault.Denied, hostOf(s), "repository a/b")
			if text := err.Error(); strings.Contains(text, "wr0ng") || strings.Contains(text, "s3cret") {
				t.Errorf("a secret in: %v", err)
			}
		})
	}
}

// Many layers asked for at once get one token between them.
func TestOneToken(t *testing.T) {
	var tokens atomic.Int32
	s := serve(t, nil)
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			_, _ = fmt.Fprintf(w, `{"token":"%d"}`, tokens.Add(1))
		case r.Header.Get("Authorization") == "":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			handler(nil).ServeHTTP(w, r)
		}
	})
	r := repository(t, Config{Parallel: 8}, hostOf(s), Auth{})
	errs := make(chan error)
	for range 8 {
		go func() {
			_, err := fetch(r)
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if tokens.Load() != 1 {
		t.Errorf("%d tokens", tokens.Load())
	}
}

// Blobs are often elsewhere; the credentials are not for there, even if it is
// another port of the same host.
func TestRedirectsTakeNoCredentials(t *testing.T) {
	var leaked atomic.Bool
	elsewhere := serve(t, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" || r.FormValue("refresh_token") != "" {
			leaked.Store(true)
		}
		return false
	})
	for name, auth := range map[string]Auth{
		"password": {Username: "ann", Password: "s3cret"}, "given token": {RegistryToken: "t0ken"}, "refresh token": {IdentityToken: "r3fresh"},
	} {
		var s *httptest.Server
		s = serve(t, func(w http.ResponseWriter, r *http.Request) bool {
			switch {
			case r.URL.Path == "/token":
				http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusTemporaryRedirect)
			case r.Header.Get("Authorization") != "":
				http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusTemporaryRedirect)
			default:
				scheme := `Bearer realm="` + s.URL + `/token"`
				if auth.Password != "" {
					scheme = "Basic"
				}
				w.Header().Set("WWW-Authenticate", scheme)
				w.WriteHeader(http.StatusUnauthorized)
			}
			return true
		})
		_, err := fetch(repository(t, Config{}, hostOf(s), auth))
		if auth.IdentityToken != "" {
			if err == nil || !strings.Contains(err.Error(), "redirect of credentials to "+hostOf(elsewhere)+" refused") {
				t.Errorf("%s: %v", name, err)
			}
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if leaked.Load() {
		t.Error("credentials went where the registry pointed")
	}
}
