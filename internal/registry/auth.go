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
	if e.registry {
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
	return fault.New(fault.Denied, "", "%s refuses access to repository %s: it wants the authentication scheme %.40q, which is not supported", e.host.address, r.path, challenges[0].scheme)
}

func (a *authorization) store(value string) { a.value.Store(&value) }

func (r *Repository) refused(e *endpoint, what string) error {
	return fault.New(fault.Denied, "", "%s refuses %s to repository %s: 401 Unauthorized", e.host.address, what, r.path)
}

func basic(a Auth) string {
	return base64.StdEncoding.EncodeToString([]byte(a.Username + ":" + a.Password))
}

// fetchToken asks a token server as the challenge says.
//
// distribution: docs/content/spec/auth/token.md and oauth.md.
func (r *Repository) fetchToken(ctx context.Context, e *endpoint, c challenge, auth Auth) (string, error) {
	limit := r.client.config.Stall
	ctx, cancel := context.WithTimeoutCause(ctx, limit, unavailable("the token server of %s takes longer than %s", e.host.address, limit))
	defer cancel()
	realm, err := url.Parse(c.params["realm"])
	if err != nil || realm.Host == "" || (realm.Scheme != "http" && realm.Scheme != "https") {
		return "", fault.New(fault.Denied, "", "%s refuses access to repository %s and names no usable token server", e.host.address, r.path)
	}
	if realm.Scheme == "http" && e.host.scheme == "https" {
		return "", fault.New(fault.Denied, "", "%s names the token server %s, to be spoken to without TLS: refused", e.host.address, realm.Host)
	}
	scope := "repository:" + r.path + ":pull"
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
		return "", fault.New(fault.Denied, "", "%s names no usable token server", e.host.address)
	}
	req.Header.Set("User-Agent", r.client.config.UserAgent)
	settings := r.client.config.Hosts[realm.Host]
	server, err := r.client.host(realm.Scheme, realm.Host, settings)
	if err != nil {
		return "", err
	}
	resp, err := server.http.Do(req)
	if err != nil {
		return "", transportError(ctx, "token server "+realm.Host, err)
	}
	defer resp.Body.Close()
	return r.readToken(ctx, e, realm.Host, resp)
}

func (r *Repository) readToken(ctx context.Context, e *endpoint, server string, resp *http.Response) (string, error) {
	switch {
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
		return "", unavailable("token server %s of %s answers %s", server, e.host.address, resp.Status)
	case resp.StatusCode != http.StatusOK:
		return "", fault.New(fault.Denied, "", "%s refuses access to repository %s: its token server %s answers %s", e.host.address, r.path, server, resp.Status)
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
		return "", unavailable("token server %s of %s answers without a token", server, e.host.address)
	}
	if reply.Token != "" {
		return reply.Token, nil
	}
	return reply.AccessToken, nil
}
