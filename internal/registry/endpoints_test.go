package registry

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/registry/route"
)

// An authority signs certificates for servers at 127.0.0.1 and for clients.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{dir: t.TempDir()}
	a.cert, a.key = a.sign(t, "ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// sign makes NAME.crt and NAME.key in the authority's directory.
func (a *authority) sign(t *testing.T, name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template.SerialNumber, template.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der := must(x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer))
	for file, block := range map[string]*pem.Block{
		name + ".crt": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "EC PRIVATE KEY", Bytes: must(x509.MarshalECPrivateKey(key))},
	} {
		if err := os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return must(x509.ParseCertificate(der)), key
}

// serveTLS is serve with a certificate of the authority; mutual asks clients
// for theirs.
func (a *authority) serveTLS(t *testing.T, mutual bool, misbehave func(w http.ResponseWriter, r *http.Request) bool) *httptest.Server {
	a.sign(t, "server", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	s := httptest.NewUnstartedServer(handler(misbehave))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{must(tls.LoadX509KeyPair(filepath.Join(a.dir, "server.crt"), filepath.Join(a.dir, "server.key")))}}
	if mutual {
		pool := x509.NewCertPool()
		pool.AddCert(a.cert)
		s.TLS.ClientAuth, s.TLS.ClientCAs = tls.RequireAndVerifyClientCert, pool
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func TestCertificates(t *testing.T) {
	a := newAuthority(t)
	a.sign(t, "client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	s := a.serveTLS(t, true, nil)
	host := hostOf(s)
	both := string(must(os.ReadFile(filepath.Join(a.dir, "client.crt")))) + string(must(os.ReadFile(filepath.Join(a.dir, "client.key"))))
	if err := os.WriteFile(filepath.Join(a.dir, "both.pem"), []byte(both), 0o600); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(a.dir, name) }
	for _, c := range []struct{ name, hosts, text string }{
		{"a pair", fmt.Sprintf("ca = %q\nclient = [[%q, %q]]", in("ca.crt"), in("client.crt"), in("client.key")), ""},
		{"one file", fmt.Sprintf("ca = [%q]\nclient = %q", in("ca.crt"), in("both.pem")), ""},
		{"not verified", fmt.Sprintf("skip_verify = true\nclient = [%q]", in("both.pem")), ""},
		{"none of the client", fmt.Sprintf("ca = %q", in("ca.crt")), "certificate required"},
		{"no authority", fmt.Sprintf("client = %q", in("both.pem")), "unknown authority"},
		{"a file that is not there", "ca = \"gone.crt\"", "gone.crt: no such file"},
		{"no key", fmt.Sprintf("client = %q", in("client.crt")), "client.crt with the key of"},
		{"no certificate", fmt.Sprintf("ca = %q", in("client.key")), "no certificate in"},
	} {
		dir := t.TempDir()
		write(t, dir, host, c.hosts)
		var err error
		r, err := New(Config{Route: route.Config{HostsDirs: []string{dir}}}).Repository(named(t, host+"/a/b"), Auth{})
		if err == nil {
			r.client.retryDelay = time.Millisecond
			_, err = r.Manifest(context.Background(), "1")
		}
		if c.text == "" && err != nil || c.text != "" && (err == nil || !strings.Contains(err.Error(), c.text)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// In Docker's manner, and beside each other.
	dir := filepath.Join(t.TempDir(), "certs.d")
	for from, to := range map[string]string{"ca.crt": "ca.crt", "client.crt": "client.cert", "client.key": "client.key"} {
		to = filepath.Join(dir, host, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, must(os.ReadFile(in(from))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, config := range map[string]route.Config{"containerd's directory": {HostsDirs: []string{dir}}, "containers' directory": {CertDirs: []string{dir}}} {
		if _, err := repository(t, Config{Route: config}, host, Auth{}).Manifest(context.Background(), "1"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A certificate that was replaced, and an edited hosts.toml, count for the next
// pull, with the same client.
func TestEditsCount(t *testing.T) {
	one, two := newAuthority(t), newAuthority(t)
	s := one.serveTLS(t, false, nil)
	dir := t.TempDir()
	ca := filepath.Join(dir, hostOf(s), "ca.pem")
	write(t, dir, hostOf(s), "ca = \"ca.pem\"\n")
	c := New(Config{Route: route.Config{HostsDirs: []string{dir}, Conf: filepath.Join(dir, "registries.conf")}})
	c.retryDelay = time.Millisecond
	defer c.Close()
	for _, step := range []struct{ file, text, want string }{
		{ca, string(must(os.ReadFile(filepath.Join(two.dir, "ca.crt")))), "unknown authority"},
		{ca, string(must(os.ReadFile(filepath.Join(one.dir, "ca.crt")))), ""},
		{filepath.Join(dir, hostOf(s), "hosts.toml"), "server = \"https://127.0.0.1:1\"\n", "refused"},
		{filepath.Join(dir, hostOf(s), "hosts.toml"), "skip_verify = true\n", ""},
		{filepath.Join(dir, hostOf(s), "hosts.toml"), "skip_verify = perhaps\n", "hosts.toml:1"},
		{filepath.Join(dir, hostOf(s), "hosts.toml"), "skip_verify = true\n", ""},
		{filepath.Join(dir, "registries.conf"), "[[registry]]\nlocation = \"" + hostOf(s) + "\"\nblocked = true\n", "is blocked: " + dir + "/registries.conf:3"},
	} {
		if err := os.WriteFile(step.file, []byte(step.text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := c.Find(context.Background(), hostOf(s)+"/a/b:1", Auth{})
		if err == nil {
			_, err = r.Manifest(context.Background(), "1")
		}
		if step.want == "" && err != nil || step.want != "" && (err == nil || !strings.Contains(err.Error(), step.want)) {
			t.Errorf("after %q: %v", step.text, err)
		}
	}
}

// What "insecure" allows, and "http" with TLS settings: https if it is spoken.
func TestInsecure(t *testing.T) {
	tlsServer := newAuthority(t).serveTLS(t, false, nil)
	plainServer := serve(t, nil)
	closed := must(net.Listen("tcp", "127.0.0.1:0"))
	_ = closed.Close()
	for _, c := range []struct {
		server   string
		insecure bool
		ok       bool
	}{
		{hostOf(tlsServer), true, true},
		{hostOf(plainServer), true, true},
		{hostOf(tlsServer), false, false}, // http, by default, for a loopback host
		{closed.Addr().String(), true, false},
	} {
		dir := t.TempDir()
		conf := filepath.Join(dir, "registries.conf")
		text := fmt.Sprintf("[[registry]]\nprefix = \"r.example\"\nlocation = %q\ninsecure = %t\n", c.server, c.insecure)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := fetch(repository(t, Config{Route: route.Config{Conf: conf}}, "r.example", Auth{}))
		if (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
		write(t, dir, "r.example", fmt.Sprintf("[host.\"http://%s\"]\nskip_verify = %t\n", c.server, c.insecure))
		_, err = fetch(repository(t, Config{Route: route.Config{HostsDirs: []string{dir}}, Stall: time.Second}, "r.example", Auth{}))
		if c.ok && err != nil {
			t.Errorf("%+v by hosts.toml: %v", c, err)
		}
	}
}

func TestHostsFile(t *testing.T) {
	type ask struct{ path, ns, header string }
	var asked []ask
	var mu sync.Mutex
	mirror := serve(t, func(_ http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, ask{r.URL.Path, r.URL.Query().Get("ns"), r.Header.Get("X-Team")})
		if rest, ok := strings.CutPrefix(r.URL.Path, "/deep/proxy"); ok {
			r.URL.Path = "/v2" + strings.Replace(rest, "/hub/a/", "/a/", 1)
		}
		return false
	})
	s := serve(t, nil)
	dir := t.TempDir()
	write(t, dir, hostOf(s), fmt.Sprintf(`
[host."%[1]s/only/by/digest"]
  capabilities = ["pull"]
[host."%[1]s/deep/proxy"]
  override_path = true
  header = { x-team = "boat" }
  rewrite = { "^a/(.*)$" = "hub/a/$1" }
`, mirror.URL))
	r := repository(t, Config{Route: route.Config{HostsDirs: []string{dir}}}, hostOf(s), Auth{})
	m, err := r.Manifest(context.Background(), "1")
	if err != nil || len(asked) != 1 || asked[0] != (ask{"/deep/proxy/hub/a/b/manifests/1", hostOf(s), "boat"}) {
		t.Errorf("a tag: %+v %v", asked, err)
	}
	if _, err := r.Manifest(context.Background(), m.Digest.String()); err != nil || len(asked) != 3 || asked[1].path != "/only/by/digest/v2/a/b/manifests/"+m.Digest.String() {
		t.Errorf("a digest: %+v %v", asked, err)
	}
	write(t, dir, hostOf(s), "server = \""+mirror.URL+"\"\ncapabilities = [\"pull\"]\n")
	_, err = repository(t, Config{Route: route.Config{HostsDirs: []string{dir}}}, hostOf(s), Auth{}).Manifest(context.Background(), "1")
	check(t, err, fault.Precondition, "capability", filepath.Join(dir, hostOf(s), "hosts.toml:2"))
}

// A proxy that connects anywhere, and says whereto and with which password.
func proxy(t *testing.T, to string) (s *httptest.Server, seen func() string) {
	var mu sync.Mutex
	var all []string
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		all = append(all, r.Method+" "+r.Host+" "+r.Header.Get("Proxy-Authorization"))
		mu.Unlock()
		if r.Method == http.MethodConnect {
			there, err := net.Dial("tcp", to)
			if err != nil {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			here, _, _ := w.(http.Hijacker).Hijack()
			_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
			go func() { _, _ = io.Copy(there, here); _ = there.Close() }()
			go func() { _, _ = io.Copy(here, there); _ = here.Close() }()
			return
		}
		handler(nil).ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s, func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(all, "\n")
	}
}

func TestProxies(t *testing.T) {
	a := newAuthority(t)
	s := a.serveTLS(t, false, nil)
	p, seen := proxy(t, hostOf(s))
	withUser := strings.Replace(p.URL, "http://", "http://user:s3cret@", 1)
	dir := t.TempDir()
	conf := filepath.Join(dir, "registries.conf")
	write(t, dir, "tls.example", fmt.Sprintf("skip_verify = true\nca = %q\n", filepath.Join(a.dir, "ca.crt")))
	write(t, dir, "plain.example", "server = \"http://plain.example\"\n")
	if err := os.WriteFile(conf, []byte("[[registry]]\nlocation = \"own.example\"\ninsecure = true\nproxy = \""+withUser+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := &httpproxy.Config{HTTPProxy: withUser, HTTPSProxy: withUser, NoProxy: "10.0.0.0/8,.no.example,direct.example"}
	config := Config{Route: route.Config{HostsDirs: []string{dir}, Conf: conf}, Proxy: env.ProxyFunc()}
	for _, c := range []struct{ host, want string }{
		{"tls.example", "CONNECT tls.example:443 Basic dXNlcjpzM2NyZXQ="},
		{"plain.example", "GET plain.example Basic dXNlcjpzM2NyZXQ="},
	} {
		if _, err := fetch(repository(t, config, c.host, Auth{})); err != nil || !strings.Contains(seen(), c.want) {
			t.Errorf("%s: %v; the proxy saw\n%s", c.host, err, seen())
		}
	}
	config.Proxy = func(*url.URL) (*url.URL, error) { return nil, nil }
	if _, err := fetch(repository(t, config, "own.example", Auth{})); err != nil || !strings.Contains(seen(), "CONNECT own.example:443") {
		t.Errorf("a proxy of its own: %v; it saw\n%s", err, seen())
	}
	config.Proxy = env.ProxyFunc()
	for host, want := range map[string]string{"tls.example": p.URL, "own.example": p.URL, "a.no.example": "", "direct.example": "", "10.1.2.3": "", "localhost:1": ""} {
		x, err := New(config).Explain(context.Background(), host+"/a", Auth{}, false)
		if err != nil || x[0].Endpoints[0].Proxy != want {
			t.Errorf("%s goes through %q, %v", host, x[0].Endpoints[0].Proxy, err)
		}
	}
	p.Close()
	_, err := fetch(repository(t, config, "tls.example", Auth{}))
	check(t, err, fault.Unknown, "^RegistryUnavailable: tls.example", "proxyconnect")
	if strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a secret in %v", err)
	}
}

func TestShortNames(t *testing.T) {
	var leaked atomic.Bool
	spy := func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			leaked.Store(true)
		}
		return false
	}
	empty := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("WWW-Authenticate", "Basic")
		w.WriteHeader(http.StatusUnauthorized)
		return spy(w, r) || true
	})
	full := serve(t, spy)
	conf := filepath.Join(t.TempDir(), "registries.conf")
	text := fmt.Sprintf("unqualified-search-registries = [%q, %q]\n", hostOf(empty), hostOf(full))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := New(Config{Route: route.Config{Conf: conf}})
	defer c.Close()
	r, err := c.Find(context.Background(), "a/b:1", Auth{Username: "ann", Password: "s3cret"})
	if err != nil || r.Named().String() != hostOf(full)+"/a/b:1" || leaked.Load() {
		t.Errorf("%v %v, credentials sent: %v", r, err, leaked.Load())
	}
	_, err = c.Find(context.Background(), "a/b:2", Auth{})
	check(t, err, fault.NotFound, hostOf(full), "was searched for before", hostOf(empty))
	if names, err := c.Names("a/b:1"); err != nil || len(names) != 2 {
		t.Errorf("%v %v", names, err)
	}
}

func TestExplain(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, _ := r.BasicAuth(); user != "ann" || password != "s3cret" {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		w.Header().Set("Docker-Content-Digest", d1)
		return false
	})
	down := serve(t, func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true })
	dir := t.TempDir()
	write(t, dir, hostOf(s), fmt.Sprintf("[host.%q]\n[host.%q.header]\nAuthorization = \"Bearer h3ader\"\n[host.\"http://127.0.0.1:1\"]\ncapabilities = [\"pull\"]\n", down.URL, down.URL))
	c := New(Config{Route: route.Config{HostsDirs: []string{dir}}})
	defer c.Close()
	x, err := c.Explain(context.Background(), hostOf(s)+"/a/b:1", Auth{Username: "ann", Password: "s3cret"}, true)
	if err != nil || len(x) != 1 || len(x[0].Endpoints) != 3 {
		t.Fatalf("%+v %v", x, err)
	}
	e := x[0].Endpoints
	for i, want := range []struct{ url, err, digest string }{
		{down.URL + "/v2/a/b", "502", ""}, {"http://127.0.0.1:1/v2/a/b", "capabilities", ""}, {s.URL + "/v2/a/b", "", d1},
	} {
		a := e[i].Answer
		if e[i].URL != want.url || a == nil || a.Digest != want.digest || !strings.Contains(a.Err, want.err) || (want.err == "") != (a.Err == "") {
			t.Errorf("%d: %+v %+v", i, e[i], a)
		}
	}
	if !e[2].Home || e[0].Home || e[0].Namespace != hostOf(s) || e[1].Resolve {
		t.Errorf("%+v", e)
	}
	if text := string(must(json.Marshal(x))); strings.Contains(text, "s3cret") || strings.Contains(text, "h3ader") || !strings.Contains(text, "hosts.toml:3") {
		t.Errorf("%s", text)
	}
}

// No secret, from wherever, is in an error or in a log.
func TestSecretsAreKept(t *testing.T) {
	var logged bytes.Buffer
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})))
	defer slog.SetDefault(old)
	secrets := []string{"us3rname", "p4ssword", "r3fresh", "t0ken", "h3ader", "pr0xy", "s1gnature", "qu3ry"}
	answers := map[string]func(w http.ResponseWriter, r *http.Request){
		"echo to who was let in": func(w http.ResponseWriter, r *http.Request) {
			switch header := r.Header.Get("Authorization"); {
			case strings.HasPrefix(r.URL.Path, "/token"):
				_, _ = io.WriteString(w, `{"token":"t0ken"}`)
			case header == "":
				w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token"`)
				w.WriteHeader(http.StatusUnauthorized)
			default:
				w.WriteHeader(http.StatusForbidden)
				_, _ = fmt.Fprintf(w, `{"errors":[{"code":"NO","message":"%s%s"}]}`, strings.Repeat("x", 185), header)
			}
		},
		"echo": func(w http.ResponseWriter, r *http.Request) {
			user, password, _ := r.BasicAuth()
			w.WriteHeader(http.StatusForbidden)
			_, _ = fmt.Fprintf(w, `{"errors":[{"code":"NO %s","message":"%s %s %s %s"}]}`, user, password, r.Header.Get("Authorization"), r.Header.Get("X-Secret"), r.URL.RawQuery)
		},
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/x?sig=s1gnature", http.StatusFound)
		},
		"reset":     func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"challenge": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
		"basic": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="qu3ry"`)
			w.WriteHeader(http.StatusUnauthorized)
		},
		"bearer": func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/token") {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token?x=qu3ry",service="t0ken"`)
			w.WriteHeader(http.StatusUnauthorized)
		},
		"no server": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://u:p4ssword@127.0.0.1:1/token?x=qu3ry"`)
			w.WriteHeader(http.StatusUnauthorized)
		},
	}
	for name, answer := range answers {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) bool { answer(w, r); return true })
		dir := t.TempDir()
		write(t, dir, hostOf(s), "server = \""+strings.Replace(s.URL, "http://", "http://us3rname:p4ssword@", 1)+"\"\n[header]\nX-Secret = \"h3ader\"\n")
		for _, auth := range []Auth{{Username: "us3rname", Password: "p4ssword"}, {IdentityToken: "r3fresh"}, {RegistryToken: "t0ken"}, {}} {
			r := repository(t, Config{Route: route.Config{HostsDirs: []string{dir}}}, hostOf(s), auth)
			_, err := r.Manifest(context.Background(), "1")
			_, blobErr := fetch(r)
			x, _ := r.client.Explain(context.Background(), hostOf(s)+"/a/b", auth, true)
			text := fmt.Sprintf("%v\n%v\n%s\n%s", err, blobErr, must(json.Marshal(x)), logged.String())
			for _, secret := range secrets {
				if strings.Contains(text, secret) || err == nil || blobErr == nil {
					t.Errorf("%s, %+v: %s in\n%s", name, auth, secret, text)
				}
			}
		}
	}
}
