package cri

import (
	"encoding/base64"
	"strings"

	"github.com/distribution/reference"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/cri/validate"
	"github.com/davit-runtime/davit/internal/image"
)

// auth turns PullImage's credentials into those of a pull. Credentials that
// name another registry than the image's are left out. No error text contains
// any of them.
func checkAuth(c *validate.Check, field string, a *runtimeapi.AuthConfig, ref string) image.Auth {
	if a == nil || !meantFor(a.GetServerAddress(), ref) {
		return image.Auth{}
	}
	out := image.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}
	if strings.ContainsAny(out.RegistryToken, "\x00\r\n") { // it goes into a header as it is
		c.Bad(field+".registry_token", "contains a line break or a zero byte")
	}
	if a.GetAuth() == "" || out.Username != "" {
		return out
	}
	user, password, ok := decodeAuth(a.GetAuth())
	if !ok {
		c.Bad(field+".auth", "is not base64 of user:password")
		return image.Auth{}
	}
	out.Username, out.Password = user, password
	return out
}

// decodeAuth reads "auth" of a Docker configuration file. Some programs pad
// what they encode with zero bytes.
func decodeAuth(auth string) (user, password string, ok bool) {
	data, err := base64.StdEncoding.DecodeString(auth)
	if err != nil {
		if data, err = base64.RawStdEncoding.DecodeString(auth); err != nil {
			return "", "", false
		}
	}
	user, password, ok = strings.Cut(strings.TrimRight(string(data), "\x00"), ":")
	return user, password, ok
}

// meantFor reports whether credentials for a server may go to an image's
// registry. An empty server stands for any.
func meantFor(server, ref string) bool {
	if server == "" {
		return true
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return false
	}
	return registryHost(server) == registryHost(reference.Domain(named))
}

// registryHost is a server's host and port; Docker Hub's many names are one.
func registryHost(server string) string {
	if _, after, ok := strings.Cut(server, "://"); ok {
		server = after
	}
	host, _, _ := strings.Cut(server, "/")
	switch host = strings.ToLower(host); host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return "docker.io"
	}
	return host
}
