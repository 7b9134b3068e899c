package verifier

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// dir makes a directory of verifiers: name, shell script, …
func dir(t *testing.T, scripts ...string) (*Dir, *bytes.Buffer) {
	t.Helper()
	v, log := &Dir{Path: t.TempDir()}, &bytes.Buffer{}
	v.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	for i := 0; i < len(scripts); i += 2 {
		if err := os.WriteFile(filepath.Join(v.Path, scripts[i]), []byte("#!/bin/sh\n"+scripts[i+1]+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return v, log
}

var descriptor = imagespec.Descriptor{MediaType: imagespec.MediaTypeImageIndex, Digest: digest.FromString("x"), Size: 7}

func TestVerify(t *testing.T) {
	const name = "registry.example/a:1"
	for what, c := range map[string]struct {
		scripts []string
		max     int
		refused string // part of the error's text; empty: welcome
	}{
		"none":           {nil, 0, ""},
		"one agrees":     {[]string{"a", "echo fine"}, 0, ""},
		"one refuses":    {[]string{"a", "echo bad signature; echo not for users >&2; exit 3"}, 0, "verifier a refuses image registry.example/a:1, " + descriptor.Digest.String() + " (exit code 3): bad signature"},
		"the second":     {[]string{"b", "echo no; exit 1", "a", ""}, 0, "verifier b refuses"},
		"the first ends": {[]string{"a", "exit 1", "b", "touch $0.asked"}, 0, "verifier a refuses"},
		"too many":       {[]string{"a", "", "b", "exit 1"}, 1, ""},
		"reads nothing":  {[]string{"a", "exec <&-; exit 0"}, 0, ""},
		"says much":      {[]string{"a", "head -c 10000000 /dev/zero | tr '\\0' x; exit 1"}, 0, "xxx…"},
		"many lines":     {[]string{"a", "printf 'one\\ntwo\\033[0m'; exit 1"}, 0, "one two [0m"},
		"killed":         {[]string{"a", "kill -9 $$"}, 0, "signal: killed"},
		"too long":       {[]string{"a", "sleep 1000"}, 0, "no answer within 300ms"},
		"its child, too": {[]string{"a", "sleep 1000 & wait"}, 0, "no answer within 300ms"},
		"what it is told": {[]string{"a", fmt.Sprintf(`test "$*" = "-name %s -digest %s -stdin-media-type application/vnd.oci.descriptor.v1+json" || exit 1
			test "$(cat)" = '{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"%s","size":7}' || exit 2`, name, descriptor.Digest, descriptor.Digest)}, 0, ""},
	} {
		t.Run(what, func(t *testing.T) {
			v, log := dir(t, c.scripts...)
			v.Max = c.max
			if strings.Contains(c.refused, "no answer") {
				v.Timeout = 300 * time.Millisecond
			}
			err := v.Verify(context.Background(), name, descriptor)
			switch {
			case c.refused == "" && err != nil:
				t.Errorf("%v\n%s", err, log)
			case c.refused != "" && (!fault.Is(err, fault.Unknown) || !strings.HasPrefix(err.Error(), "SignatureValidationFailed: ") || !strings.Contains(err.Error(), c.refused)):
				t.Errorf("%v, want %q", err, c.refused)
			}
			if err != nil && len(err.Error()) > maxOutput+500 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			if what == "one refuses" && !strings.Contains(log.String(), "not for users") {
				t.Errorf("the log: %s", log)
			}
			if _, err := os.Stat(filepath.Join(v.Path, "b.asked")); err == nil {
				t.Error("asked after one refused")
			}
		})
	}
}

func TestVerifyWithoutDirectory(t *testing.T) {
	v := &Dir{Path: filepath.Join(t.TempDir(), "none")}
	if err := v.Verify(context.Background(), "a", descriptor); err != nil {
		t.Error(err)
	}
	v, _ = dir(t)
	if err := os.WriteFile(filepath.Join(v.Path, "text"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := v.Verify(context.Background(), "a", descriptor); !fault.Is(err, fault.Unknown) || !strings.HasPrefix(err.Error(), "SignatureValidationFailed: verifier text, asked about") {
		t.Errorf("what is no program: %v", err)
	}
	v.Path = "/dev/null"
	if err := v.Verify(context.Background(), "a", descriptor); err == nil {
		t.Error("a directory that cannot be read")
	}
}

func TestVerifyEndsWithItsCaller(t *testing.T) {
	v, _ := dir(t, "a", "sleep 1000")
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := v.Verify(ctx, "a", descriptor); err != context.DeadlineExceeded {
		t.Errorf("%v", err)
	}
}
