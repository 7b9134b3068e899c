package stream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/testkit"
)

func nothing(context.Context, monitor.Stream) (int, error) { return 0, nil }

func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all tokens
		one, err := all.add(&command{name: "one"})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(tokenLife / 2)
		two, _ := all.add(&command{name: "two"})
		time.Sleep(tokenLife/2 + 1)
		if _, ok := all.take(one); ok {
			t.Error("one is good for longer than a minute")
		}
		if s, ok := all.take(two); !ok || s.kind() != "two" {
			t.Errorf("two: %v, %v", s, ok)
		}
		if _, ok := all.take(two); ok {
			t.Error("two is good twice")
		}
		seen := map[string]bool{}
		for range maxTokens {
			token, err := all.add(&command{})
			if err != nil || seen[token] || len(token) < 22 {
				t.Fatalf("%q, %v", token, err)
			}
			seen[token] = true
		}
		if _, err := all.add(&command{}); !fault.Is(err, fault.Exhausted) {
			t.Errorf("one too many: %v", err)
		}
		time.Sleep(tokenLife + 1)
		if _, err := all.add(&command{}); err != nil {
			t.Errorf("after a minute: %v", err)
		}
		if len(all.byKey) != 1 || all.old.Len() != 1 {
			t.Errorf("%d and %d are kept", len(all.byKey), all.old.Len())
		}
	})
}

func get(t *testing.T, method, url string) (code int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data)
}

func TestURLs(t *testing.T) {
	s := serving(t, Config{})
	url := mustExec(t, s, Command{Stdout: true, Run: nothing})
	token := url[strings.LastIndex(url, "/")+1:]
	if !strings.HasPrefix(url, "http://127.0.0.1:") {
		t.Error(url)
	}
	for _, tt := range []struct {
		method, url string
		code        int
		text        string
	}{
		{"GET", s.URL() + "/", 404, ""},
		{"GET", s.URL() + "/exec/none", 404, "no such session"},
		{"PUT", url, 405, ""},
		{"GET", s.URL() + "/attach/" + token, 404, "no such session"}, // and now it is used up
		{"GET", url, 404, "no such session"},
		{"GET", mustExec(t, s, Command{Stdout: true, Run: nothing}), 400, "upgrade"},
	} {
		if code, text := get(t, tt.method, tt.url); code != tt.code || !strings.Contains(text, tt.text) {
			t.Errorf("%s %s: %d %q", tt.method, tt.url, code, text)
		}
	}
}

func haveIPv6() bool {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err == nil {
		_ = l.Close()
	}
	return err == nil
}

func TestAddresses(t *testing.T) {
	for _, tt := range []struct{ address, url string }{
		{"", "http://127.0.0.1:"},
		{"127.0.0.1:0", "http://127.0.0.1:"},
		{"localhost:0", "http://localhost:"},
		{":0", "http://127.0.0.1:"},
		{"0.0.0.0:0", "http://127.0.0.1:"},
		{"[::]:0", "http://[::1]:"},
		{"[::1]:0", "http://[::1]:"},
	} {
		if strings.Contains(tt.address, "[") && !haveIPv6() {
			t.Logf("%s: this machine has no IPv6", tt.address)
			continue
		}
		s := serving(t, Config{Address: tt.address})
		url := mustExec(t, s, Command{Stdout: true, Run: nothing})
		if !strings.HasPrefix(url, tt.url) {
			t.Errorf("%q: %s", tt.address, url)
		}
		if code, _ := get(t, "GET", url); code != 400 { // it is reached
			t.Errorf("%s: %d", url, code)
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for address, kind := range map[string]fault.Kind{
		"127.0.0.1": fault.Invalid, "localhost:http:1": fault.Invalid, taken.Addr().String(): fault.Unavailable,
	} {
		if _, err := Listen(Config{Address: address}); !fault.Is(err, kind) || !strings.Contains(err.Error(), address) {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// newCertificate writes a certificate and its key, named for what tells it from others.
func newCertificate(t *testing.T, certFile, keyFile, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCertificateIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	if _, err := Listen(Config{CertFile: certFile, KeyFile: keyFile, Log: slog.Default()}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), certFile) {
		t.Errorf("no files: %v", err)
	}
	newCertificate(t, certFile, keyFile, "first")
	s := serving(t, Config{CertFile: certFile, KeyFile: keyFile})
	// session returns a session under way, and whose certificate it met.
	session := func() (*client, string) {
		t.Helper()
		release := Command{Stdin: true, Stdout: true, Run: func(_ context.Context, io_ monitor.Stream) (int, error) {
			_, err := io.CopyN(io_.Stdout, io_.Stdin, 2)
			return 0, err
		}}
		name := ""
		conn := testkit.DialSPDY(t, mustExec(t, s, release), "v4.channel.k8s.io", &tls.Config{
			InsecureSkipVerify: true,
			VerifyConnection: func(state tls.ConnectionState) error {
				name = state.PeerCertificates[0].Subject.CommonName
				return nil
			},
		})
		_ = testkit.OpenStream(t, conn, "error")
		in, out := testkit.OpenStream(t, conn, "stdin"), testkit.OpenStream(t, conn, "stdout")
		return &client{stdin: in, result: func() (string, string, string) {
			data, _ := io.ReadAll(out)
			return string(data), "", ""
		}}, name
	}
	old, name := session()
	if !strings.HasPrefix(s.URL(), "https://127.0.0.1:") || name != "first" {
		t.Errorf("%s, %s", s.URL(), name)
	}
	newCertificate(t, certFile, keyFile, "second one")
	if _, name := session(); name != "second one" {
		t.Errorf("after a change: %s", name)
	}
	if err := os.WriteFile(certFile, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, name := session(); name != "second one" {
		t.Errorf("with a broken file: %s", name)
	}
	if err := os.Remove(keyFile); err != nil {
		t.Fatal(err)
	}
	if _, name := session(); name != "second one" {
		t.Errorf("without a file: %s", name)
	}
	newCertificate(t, certFile, keyFile, "third")
	if _, name := session(); name != "third" {
		t.Errorf("once they are good again: %s", name)
	}
	_, _ = old.stdin.Write([]byte("ok"))
	if out, _, _ := old.result(); out != "ok" {
		t.Errorf("the session under the first certificate: %q", out)
	}
}
