package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/registry/route"
)

// An authorization is what to say to one endpoint once it has asked.
type authorization struct {
	value atomic.Pointer[string] // of the header Authorization
	busy  chan struct{}          // held by the one who is getting a new value
}

// set puts the authorization into a request and returns what it put there.
func (a *authorization) set(req *http.Request) *string {
	value := a.value.Load()
	if value != nil {
		req.Header.Set("Authorization", *value)
	}
	return value
}

// authorize gets an authorization that the challenges ask for, unless somebody
// else has done so since the request was sent with the one in used.
func (r *Repository) authorize(ctx context.Context, e *endpoint, headers []string, used *string) error {
	select {
	case e.token.busy <- struct{}{}:
		defer func() { <-e.token.busy }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if e.token.value.Load() != used {
		return nil
	}
	var auth Auth
	if e.Home {
		auth = r.auth
	}
	challenges := parseChallenges(headers)
	for _, c := range challenges {
		switch strings.ToLower(c.scheme) {
		case "bearer":
			if auth.RegistryToken != "" {
				if used != nil {
					return r.refused(e, "the given token")
				}
				e.token.store("Bearer " + auth.RegistryToken)
				return nil
			}
			token, err := r.fetchToken(ctx, e, c, auth)
			if err != nil {
				return err
			}
			e.token.store("Bearer " + token)
			return nil
		case "basic":
			if auth.Username == "" && auth.Password == "" {
				return r.refused(e, "anonymous access")
			}
			if used != nil {
				return r.refused(e, "the given user name and password")
			}
			e.token.store("Basic " + basic(auth))
			return nil
		}
	}
	if len(challenges) == 0 {
		return r.refused(e, "access without saying how to ask for it")
	}
	return fault.New(fault.Denied, "", "%s refuses access to repository %s: it wants the authentication scheme %.40q, which is not supported", e.Address, e.Repository, challenges[0].scheme)
}

func (a *authorization) store(value string) { a.value.Store(&value) }

func (r *Repository) refused(e *endpoint, what string) error {
	return fault.New(fault.Denied, "", "%s refuses %s to repository %s: 401 Unauthorized", e.Address, what, e.Repository)
}

func basic(a Auth) string {
	return base64.StdEncoding.EncodeToString([]byte(a.Username + ":" + a.Password))
}

// fetchToken asks a token server as the challenge says.
//
// distribution: docs/content/spec/auth/token.md and oauth.md.
func (r *Repository) fetchToken(ctx context.Context, e *endpoint, c challenge, auth Auth) (string, error) {
	limit := r.client.config.Stall
	ctx, cancel := context.WithTimeoutCause(ctx, limit, unavailable("the token server of %s takes longer than %s", e.Address, limit))
	defer cancel()
	realm, err := url.Parse(c.params["realm"])
	if err != nil || realm.Host == "" || (realm.Scheme != "http" && realm.Scheme != "https") {
		return "", fault.New(fault.Denied, "", "%s refuses access to repository %s and names no usable token server", e.Address, e.Repository)
	}
	if realm.Scheme == "http" && e.scheme() == "https" {
		return "", fault.New(fault.Denied, "", "%s names the token server %s, to be spoken to without TLS: refused", e.Address, realm.Host)
	}
	scope := "repository:" + e.Repository + ":pull"
	if asked := c.params["scope"]; strings.HasPrefix(asked, "repository:") && strings.HasSuffix(asked, ":pull") {
		scope = asked // what the repository is called where the path says so
	}
	var req *http.Request
	if auth.IdentityToken != "" {
		form := url.Values{
			"grant_type": {"refresh_token"}, "refresh_token": {auth.IdentityToken},
			"service": {c.params["service"]}, "scope": {scope}, "client_id": {"davit"},
		}
		req, err = http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
	} else {
		query := realm.Query()
		if service := c.params["service"]; service != "" {
			query.Set("service", service)
		}
		query.Set("scope", scope)
		realm.RawQuery = query.Encode()
		req, err = http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
		if err == nil && auth.Username != "" {
			req.Header.Set("Authorization", "Basic "+basic(auth))
		}
	}
	if err != nil {
		return "", fault.New(fault.Denied, "", "%s names no usable token server", e.Address)
	}
	req.Header.Set("User-Agent", r.client.config.UserAgent)
	server, err := r.client.tokenServer(e, realm)
	if err != nil {
		return "", err
	}
	if origin(realm) == origin(&url.URL{Scheme: e.scheme(), Host: e.Address}) {
		for name, values := range e.Header {
			if req.Header.Get(name) == "" {
				req.Header[name] = values
			}
		}
	}
	resp, err := server.http.Do(req)
	if err != nil {
		return "", transportError(ctx, "token server "+realm.Host, err)
	}
	defer resp.Body.Close()
	return r.readToken(ctx, e, realm.Host, resp)
}

// tokenServer is the host that gives tokens for an endpoint. Unless something
// is configured for it, it is spoken to as the endpoint is, as containerd does.
func (c *Client) tokenServer(e *endpoint, realm *url.URL) (*host, error) {
	if realm.Host == e.Address {
		return e.host, nil
	}
	t, err := c.files.TLS(realm.Host)
	if err != nil {
		return nil, err
	}
	if len(t.CAs) == 0 && len(t.Pairs) == 0 && !t.SkipVerify {
		t = e.TLS
	}
	return c.host(&route.Endpoint{Address: realm.Host, TLS: t, Dial: e.Dial, Proxy: e.Proxy})
}

func (r *Repository) readToken(ctx context.Context, e *endpoint, server string, resp *http.Response) (string, error) {
	switch {
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
		return "", unavailable("token server %s of %s answers %s", server, e.Address, resp.Status)
	case resp.StatusCode != http.StatusOK:
		return "", fault.New(fault.Denied, "", "%s refuses access to repository %s: its token server %s answers %s", e.Address, e.Repository, server, resp.Status)
	}
	var reply struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", transportError(ctx, "token server "+server, err)
	}
	if json.Unmarshal(body, &reply) != nil || reply.Token+reply.AccessToken == "" {
		return "", unavailable("token server %s of %s answers without a token", server, e.Address)
	}
	if reply.Token != "" {
		return reply.Token, nil
	}
	return reply.AccessToken, nil
}
