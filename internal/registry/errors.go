package registry

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"unicode"

	"github.com/davit-runtime/davit/internal/fault"
)

// unavailable is the error whose text the kubelet knows.
//
// kubernetes: pkg/kubelet/images/image_manager.go, evalCRIPullErr.
func unavailable(format string, args ...any) error {
	return fault.New(fault.Unknown, "", "RegistryUnavailable: "+format, args...)
}

// transportError classifies an error of http.Client.Do or of reading a body.
// The URL in it is dropped: redirect targets carry signatures.
func transportError(ctx context.Context, host string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	for {
		var u *url.Error
		if !errors.As(err, &u) {
			break
		}
		err = u.Err
	}
	return unavailable("%s: %w", host, err)
}

// permanent reports whether asking again at once is pointless.
func permanent(err error) bool {
	var dns *net.DNSError
	var cert x509.CertificateInvalidError
	var name x509.HostnameError
	var authority x509.UnknownAuthorityError
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return true // it had Config.Stall
	}
	return errors.As(err, &dns) || errors.As(err, &cert) || errors.As(err, &name) || errors.As(err, &authority) ||
		errors.Is(err, http.ErrSchemeMismatch)
}

func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// plain drops the prefix that unavailable adds, to add it once.
func plain(err error) error {
	if text, ok := strings.CutPrefix(err.Error(), "RegistryUnavailable: "); ok {
		return errors.New(text)
	}
	return err
}

// statusError classifies an answer that is no success. It closes the body.
func (r *Repository) statusError(e *endpoint, what string, resp *http.Response) error {
	defer resp.Body.Close()
	said := r.said(e, resp)
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fault.New(fault.Denied, "", "%s refuses access to repository %s%s: %s", e.Address, e.Repository, said, resp.Status)
	case http.StatusNotFound:
		return fault.New(fault.NotFound, "", "%s has no %s of repository %s%s: %s", e.Address, what, e.Repository, said, resp.Status)
	}
	if resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests {
		return unavailable("%s answers %s to a request for %s of repository %s%s", e.Address, resp.Status, what, e.Repository, said)
	}
	return fault.New(fault.Unknown, "", "%s answers %s to a request for %s of repository %s%s", e.Address, resp.Status, what, e.Repository, said)
}

// said returns what the registry gave as reason, in brackets, fit for one line
// of a log, with the caller's secrets blotted out should it repeat them.
func (r *Repository) said(e *endpoint, resp *http.Response) string {
	body := beginning(resp, 8<<10)
	var reply struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &reply) != nil || len(reply.Errors) == 0 {
		return ""
	}
	text := strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return ' '
	}, reply.Errors[0].Code+" "+reply.Errors[0].Message)
	text = r.scrub(e, text) // whole, before a part of a secret is cut off
	if len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "") + "…"
	}
	return fmt.Sprintf(" (%s)", strings.TrimSpace(text))
}

// scrub blots out what was sent to an endpoint to be let in.
func (r *Repository) scrub(e *endpoint, text string) string {
	secrets := []string{r.auth.Password, r.auth.IdentityToken, r.auth.RegistryToken, r.auth.Username}
	if r.auth.Password != "" {
		secrets = append(secrets, basic(r.auth))
	}
	if value := e.token.value.Load(); value != nil {
		secrets = append(secrets, *value)
	}
	for _, values := range e.Header {
		secrets = append(secrets, values...)
	}
	for _, secret := range secrets {
		if _, token, ok := strings.Cut(secret, " "); ok && len(token) > 2 { // behind the name of a scheme
			text = strings.ReplaceAll(text, token, "***")
		}
		if len(secret) > 2 {
			text = strings.ReplaceAll(text, secret, "***")
		}
	}
	return text
}
