package registry

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/davit-runtime/davit/internal/fault"
)

const (
	d1 = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

	ociManifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + d1 + `","size":2},
"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"` + d1 + `","size":3}]}`
	ociIndex = `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",
"digest":"` + d1 + `","size":3,"platform":{"os":"linux","architecture":"arm64","variant":"v8"}}]}`
)

func TestParseManifest(t *testing.T) {
	for _, c := range []struct {
		name, contentType, body string
		kind                    fault.Kind // of the error
		text                    string
	}{
		{"manifest", "", ociManifest, 0, ""},
		{"docker's", dockerManifest, strings.Replace(ociManifest, "application/vnd.oci.image.manifest.v1+json", dockerManifest, 1), 0, ""},
		{"index by its header", "application/vnd.oci.image.index.v1+json; charset=utf-8", ociIndex, 0, ""},
		{"index by its structure", "text/plain", ociIndex, 0, ""},
		{"schema 1", dockerSigned1, `{"schemaVersion":1,"name":"a","fsLayers":[]}`, fault.Unimplemented, "schema 1"},
		{"no JSON", dockerManifest, `<html>`, fault.Unknown, "is no manifest"},
		{"both", "", strings.Replace(ociManifest, `"layers"`, `"manifests":[],"layers"`, 1), fault.Unknown, "both"},
		{"neither", "application/json", `{"schemaVersion":2}`, fault.Unknown, "neither"},
		{"no configuration", "", `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`, fault.Unknown, "no configuration"},
		{"bad digest", "", strings.Replace(ociManifest, d1, "sha256:../../x", 1), fault.Unknown, "digest"},
		{"unknown algorithm", "", strings.Replace(ociManifest, d1, "md5:d41d8cd98f00b204e9800998ecf8427e", 1), fault.Unknown, "digest"},
		{"nothing, many times", "", `{"schemaVersion":2,"manifests":[{}` + strings.Repeat(",{}", 1<<20) + `]}`, fault.Unknown, "more than 65536 parts"},
		{"negative size", "", strings.Replace(ociManifest, `"size":3`, `"size":-3`, 1), fault.Unknown, "size"},
	} {
		m, err := parseManifest(c.contentType, digest.FromString(c.body), []byte(c.body))
		switch {
		case c.text == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.text == "" && (m.Manifests == nil) == (m.Config.Digest == ""):
			t.Errorf("%s: %+v", c.name, m)
		case c.text != "" && (!fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.text)):
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add("", []byte(ociManifest))
	f.Add(dockerList, []byte(ociIndex))
	f.Add("", []byte(`{"schemaVersion":1}`))
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		m, err := parseManifest(contentType, digest.FromBytes(body), body)
		if err != nil {
			return
		}
		for _, d := range append(append(m.Layers, m.Manifests...), m.Config) {
			if d.Digest != "" && d.Digest.Validate() != nil || d.Size < 0 {
				t.Errorf("%+v", d)
			}
		}
		if m.Manifests == nil && m.Config.Digest == "" {
			t.Error("neither an index nor a manifest")
		}
	})
}
