package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// everyKey is a configuration with all that there is.
const everyKey = `
socket = "/run/a.sock"
image_socket = "/run/i.sock"
cadvisor_socket = "/run/c.sock"
cri_versions = ["v1alpha2"]
root = "/r"
state = "/s"
cgroup_driver = "cgroupfs"
default_runtime = "fast"
cdi_spec_dirs = ["/etc/cdi"]
[log]
level = "debug"
format = "json"
[runtimes.fast]
path = "/opt/crun"
[network]
bridge = "br0"
subnets = ["10.1.0.0/16", "fd00:1::/64"]
cni_conf_dir = "/c"
cni_bin_dirs = ["/b"]
mtu = 1400
cni_conf_template = "/t"
cni_del_patience = "1m"
[ulimits]
nofile = "1024:4096"
[nri]
disable = false
socket = "/n"
plugin_dir = "/p"
config_dir = "/o"
registration_timeout = "5s"
request_timeout = "5s"
[nri.validator]
enable = true
required_plugins = ["a"]
[streaming]
address = "0.0.0.0:10010"
tls_cert_file = "/c.pem"
tls_key_file = "/k.pem"
idle_timeout = "1h30m"
[registries."docker.io"]
endpoints = ["https://mirror.example/v2", "mirror.example:5000"]
[registries."localhost:5000"]
plain_http = true
skip_verify = true
ca_file = "/ca.pem"
[images]
store = "auto"
pinned = ["busybox", "registry.example/*"]
[images.verifiers]
bin_dir = "/v"
max_verifiers = 3
per_verifier_timeout = "5s"
[pull]
hosts_dirs = ["/h"]
registries_conf = ""
stall = "30s"
min_rate = 4096
parallel = 6
ahead = 0
`

func TestConfig(t *testing.T) {
	c := defaults("f")
	if err := c.parse("f", []byte(everyKey)); err != nil {
		t.Fatal(err)
	}
	if c.Log.Level.value() != slog.LevelDebug || c.Runtimes["fast"].Path != "/opt/crun" || len(c.Network.Subnets) != 2 ||
		!c.Registries["localhost:5000"].PlainHTTP || c.Streaming.IdleTimeout.value() != 90*time.Minute ||
		len(c.Pull.HostsDirs) != 1 || c.registry().Ahead != -1 || c.registry().Route.CertDirs != nil || c.registry().Stall != 30*time.Second ||
		c.socketPath() != "/run/a.sock" || c.ImageSocket != "/run/i.sock" || c.CadvisorSocket != "/run/c.sock" || len(c.CRIVersions) != 1 {
		t.Errorf("%+v", c)
	}
	for _, tt := range []struct{ text, err string }{
		{"", ""},
		{"[pull]\nstall = \"0s\"\n[log]\nlevel = \"WARN\"\n", ""},
		{"sokcet = \"/a\"\n", `f:1:1: sokcet: unknown key; did you mean socket?`},
		{"[network]\nbridge = \"b\"\nmtv = 1\n", `f:3:1: network.mtv: unknown key; did you mean network.mtu?`},
		{"[log]\nlevel = \"loud\"\n", `f:2:1: log.level: "loud" is not one of debug, info, warn, error`},
		{"[log]\nlevel = 4\n", `f:2:9: log.level: integer is not text in quotes`},
		{"root = \"\"\n", `f:1:1: root: is empty; leave it out`},
		{"state = \"\"\n", `f:1:1: state: is empty; leave it out`},
		{"root = 1\n", `f:1:8: root: integer is not text in quotes`},
		{"cri_versions = \"v1\"\n", `f:1:16: cri_versions: string is not a list`},
		{"log = \"debug\"\n", `f:1:7: log: string is not a table of keys`},
		{"registries = \"a\"\n", `f:1:14: registries: string is not a table of keys`},
		{"[registries]\na = \"b\"\n", `f:2:5: registries.a: string is not a table of keys`},
		{"[registries.docker.io]\nplain_http = true\n", `f:1:2: registries.docker.io: unknown key; a host with dots stands in quotes`},
		{"[registries.\"docker.io\"]\nhttp = true\n", "f:2:1: registries.docker.io.http: unknown key\n"},
		{"[nri]\ndisable = 1\n", `f:2:11: nri.disable: integer is not true or false`},
		{"[images]\nstore = 1\n", `f:2:9: images.store: integer is not text in quotes`},
		{"[streaming]\nidle_timeout = 30\n", `f:2:16: streaming.idle_timeout: integer is not a time in quotes, such as "90s"`},
		{"[network]\ncni_del_patience = \"soon\"\n", `f:2:1: network.cni_del_patience: "soon" is not a time such as 90s`},
		{"[network]\nsubnets = [\"10.0.0.0\"]\n", `f:2:`},
		{"[network]\nsubnets = [\"10.0.0.0/32\"]\n", `f:2:1: network.subnets: subnet 10.0.0.0/32 has no room for pods`},
		{"[network]\nsubnets = [\"127.0.0.0/8\"]\n", `f:2:1: network.subnets: subnet 127.0.0.0/8 is not for hosts`},
		{"[network]\nsubnets = [\"ff00::/64\"]\n", `f:2:1: network.subnets: subnet ff00::/64 is not for hosts`},
		{"[network]\nbridge = \"..\"\n", `f:2:1: network.bridge: `},
		{"[network]\nbridge = \"br%d\"\n", `f:2:1: network.bridge: `},
		{"[network]\nmtu = \"big\"\n", `f:2:7: network.mtu: string is not a whole number`},
		{"root = \n", `f:1:`},
		{"root = \"var\"\n", `f:1:1: root: "var" is not an absolute path`},
		{"root = \"/a\"\nstate = \"/a/\"\n", `f:2:1: state: /a/ is root, too`},
		{"state = \"/" + strings.Repeat("a", 94) + "\"\n", `f:1:1: state: the path is 95 bytes long; with 94 at most`},
		{"[registries.\"https://a\"]\n", `f:1:13: registries.https://a: want a host as it stands`},
		{"cdi_spec_dirs = [\"cdi\"]\n", `f:1:1: cdi_spec_dirs: "cdi" is not an absolute path`},
		{"cri_versions = []\n", `f:1:1: cri_versions: names no version`},
		{"cri_versions = [\"v2\"]\n", `f:1:1: cri_versions: "v2" is not one of [v1 v1alpha2]`},
		{"cri_versions = [\"v1\", \"v1\"]\n", `f:1:1: cri_versions: "v1" stands there twice`},
		{"[ulimits]\nnofile = \"many\"\n", `f:2:10: ulimits.nofile: "many" is neither a number, nor "SOFT:HARD", nor "unlimited"`},
		{"[ulimits]\nnofile = \"5:4\"\n", `f:2:10: ulimits.nofile: "5:4": the first is above the second`},
		{"[ulimits]\ncore = \"0\"\nnofile = true\n[log]\n", `f:3:1: ulimits.nofile: "true" is neither a number`},
		{"[network]\nsubnets = [\n\"10.0.0.0/8\",\n[]]\n", `f:2:1: network.subnets: array is not text`},
		{"[ulimits]\nnofile = \"unlimited\"\n", `f:2:1: ulimits.nofile: the kernel allows `},
		{"[ulimits]\nfiles = \"5\"\n", `f:2:1: ulimits.files: is not one of as, core, `},
		{"cadvisor_socket = \"/run/davit/davit.sock\"\nstate = \"/run/davit\"\n", `f:1:1: cadvisor_socket: /run/davit/davit.sock is one of davitd's other sockets`},
		{"image_socket = \"/run/davit/davit.sock\"\nstate = \"/run/davit\"\n", `f:1:1: image_socket: /run/davit/davit.sock is socket`},
		{"cgroup_driver = \"v2\"\n", `f:1:1: cgroup_driver: "v2" is not one of auto, systemd, cgroupfs`},
		{"[log]\nformat = \"xml\"\n", `f:2:1: log.format: `},
		{"[runtimes.Fast]\n", `f:1:11: runtimes.Fast: `},
		{"[runtimes.a]\npath = \"crun\"\n", `f:2:1: runtimes.a.path: `},
		{"default_runtime = \"Kata Fast\"\n", `f:1:1: default_runtime: `},
		{"[network]\nmtu = 100\n", `f:2:1: network.mtu: 100 is not from 576`},
		{"[network]\nbridge = \"a-name-that-is-too-long\"\n", `f:2:1: network.bridge: `},
		{"[network]\ncni_bin_dirs = [\"bin\"]\n", `f:2:1: network.cni_bin_dirs: `},
		{"[network]\nsubnets = [\"10.0.0.0/8\", \"11.0.0.0/8\"]\n", `f:2:1: network.subnets: subnets [10.0.0.0/8 11.0.0.0/8]: at most one of each family`},
		{"[streaming]\naddress = \"127.0.0.1\"\n", `f:2:1: streaming.address: "127.0.0.1" is not as`},
		{"[streaming]\naddress = \":70000\"\n", `f:2:1: streaming.address: `},
		{"[streaming]\naddress = \":http\"\n", `f:2:1: streaming.address: `},
		{"[streaming]\ntls_cert_file = \"/c\"\n", `f:2:1: streaming.tls_cert_file: goes together with`},
		{"[streaming]\ntls_cert_file = \"c\"\ntls_key_file = \"/k\"\n", `f:2:1: streaming.tls_cert_file: "c" is not an absolute path`},
		{"[streaming]\nidle_timeout = \"-1s\"\n", `f:2:1: streaming.idle_timeout: -1s is negative`},

		{"[registries.a]\nendpoints = [\"ftp://b\"]\n", `f:2:1: registries.a.endpoints: "ftp://b"`},
		{"[registries.a]\nendpoints = [\"https://u:secret@b\"]\n", `f:2:1: registries.a.endpoints: "(not shown)"`},
		{"[pull]\nstall = \"1ms\"\n", `f:2:1: pull.stall: 1ms is not from 1s`},
		{"[pull]\nhosts_dirs = [\"certs.d\"]\n", `f:2:1: pull.hosts_dirs: `},
		{"[images]\npinned = [\"A B\"]\n", `f:2:1: images.pinned: "A B" is neither`},
		{"[images.verifiers]\nbin_dir = \"bin\"\n", `f:2:1: images.verifiers.bin_dir: "bin" is not an absolute path`},
		{"[images.verifiers]\nper_verifier_timeout = \"2h\"\n", `f:2:1: images.verifiers.per_verifier_timeout: 2h0m0s is not`},
		{"[registries.a]\nca_file = \"ca\"\n", `f:2:1: registries.a.ca_file: `},
	} {
		err := defaults("f").parse("f", []byte(tt.text))
		if (err == nil) != (tt.err == "") || err != nil && !strings.HasPrefix(err.Error()+"\n", tt.err) {
			t.Errorf("%q: %v, want %q", tt.text, err, tt.err)
		}
	}
}

func TestArguments(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.toml")
	if err := os.WriteFile(file, []byte("root = \"/r\"\nstate = \"/s\"\n[log]\nlevel = \"warn\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := arguments([]string{"--config", file, "--state", "/mine", "--log-level=debug"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if c.Root != "/r" || c.socketPath() != "/mine/davit.sock" || c.Log.Level.value() != slog.LevelDebug {
		t.Errorf("%+v", c)
	}
	if c, err := arguments([]string{"--socket", "/x.sock"}, io.Discard); err != nil || c.Root != "/var/lib/davit" || c.socketPath() != "/x.sock" {
		t.Errorf("without a file: %+v, %v", c, err)
	}
	var out bytes.Buffer
	if c, err := arguments([]string{"--version"}, &out); c != nil || err != nil || !strings.HasPrefix(out.String(), "davitd ") {
		t.Errorf("--version: %v, %v, %s", c, err, out.String())
	}
	out.Reset()
	var told struct{ Root, State, Socket, LogLevel string }
	if c, err := arguments([]string{"--config", file, "--check"}, &out); c != nil || err != nil || json.Unmarshal(out.Bytes(), &told) != nil ||
		told.Root != "/r" || told.State != "/s" || told.Socket != "/s/davit.sock" || told.LogLevel != "warn" {
		t.Errorf("--check: %v, %v, %s", c, err, out.String())
	}
	// What was given its default is told from what was left out, and all is told as it is written.
	full := filepath.Join(dir, "full")
	for _, c := range []struct{ text, want string }{
		{"", ""},
		{"cadvisor_socket = \"\"\n", `"cadvisorSocket": ""`},
		{"cadvisor_socket = \"/c.sock\"\n", `"cadvisorSocket": "/c.sock"`},
		{"[ulimits]\ncore = \"0\"\n", `"ulimits": {
    "core": "0"
  }`},
		{"[ulimits]\nnofile = \"600:700\"\nmemlock = \"5:unlimited\"\nstack = \"unlimited\"\n", `"ulimits": {
    "memlock": "5:unlimited",
    "nofile": "600:700",
    "stack": "unlimited"
  }`},
	} {
		if err := os.WriteFile(full, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		out.Reset()
		_, err := arguments([]string{"--config", full, "--check"}, &out)
		if err != nil || !strings.Contains(out.String(), c.want) || c.want == "" && (strings.Contains(out.String(), "cadvisor") || strings.Contains(out.String(), "ulimits")) {
			t.Errorf("--check of %q: %v, %s", c.text, err, out.String())
		}
	}
	out.Reset()
	if c, err := arguments([]string{"--help"}, &out); c != nil || err != nil || !strings.Contains(out.String(), "Usage: davitd [options]") {
		t.Errorf("--help: %v, %v, %s", c, err, out.String())
	}
	for _, args := range [][]string{
		{"--check", "--root", "r"}, {"--config", filepath.Join(dir, "absent")}, {"--log-level", "loud"}, {"--log-format", "xml"}, {"--root", "r"}, {"serve"}, {"--unknown"},
	} {
		if _, err := arguments(args, io.Discard); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
}

func TestRootOnly(t *testing.T) {
	if err := mayRun(0); err != nil {
		t.Error(err)
	}
	if err := mayRun(1000); err == nil || !strings.Contains(err.Error(), "needs root, and runs as user 1000") {
		t.Error(err)
	}
}

// A letter too few, or two exchanged, in any key: it is told which was meant.
func TestMistypedKeys(t *testing.T) {
	lines := strings.Split(everyKey, "\n")
	for i, line := range lines {
		key, value, _ := strings.Cut(line, " = ")
		if len(key) < 4 || strings.HasPrefix(key, "[") || key == "nofile" {
			continue
		}
		for _, typo := range []string{key[:2] + key[3:], key[:1] + key[2:3] + key[1:2] + key[3:], strings.ReplaceAll(key, "_", "-") + "s"} {
			if typo == key {
				continue
			}
			text := strings.Join(slices.Concat(lines[:i], []string{typo + " = " + value}, lines[i+1:]), "\n")
			err := defaults("f").parse("f", []byte(text))
			if err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("f:%d:1: ", i+1)) || !strings.HasSuffix(err.Error(), key+"?") {
				t.Errorf("%s: %v", typo, err)
			}
		}
	}
}

// located is what each line of an error begins with.
var located = regexp.MustCompile(`^f:\d+:\d+: `)

// Of 1,000 configurations with something wrong somewhere, each is either in
// force or refused with the place.
func TestBrokenConfigurations(t *testing.T) {
	random := rand.New(rand.NewPCG(15, 20))
	refused := 0
	for range 1000 {
		text := []byte(everyKey)
		for range 1 + random.IntN(3) {
			at := random.IntN(len(text))
			switch random.IntN(4) {
			case 0:
				text[at] = " \n\"=[].#x9-/\x00\xff"[random.IntN(14)]
			case 1:
				text = slices.Delete(text, at, min(len(text), at+1+random.IntN(20)))
			case 2:
				other := random.IntN(len(text))
				text = slices.Insert(text, at, text[other:min(len(text), other+random.IntN(30))]...)
			default:
				lines := bytes.Split(text, []byte("\n"))
				a, b := random.IntN(len(lines)), random.IntN(len(lines))
				lines[a], lines[b] = lines[b], lines[a]
				text = bytes.Join(lines, []byte("\n"))
			}
		}
		err := defaults("f").parse("f", text)
		if err == nil {
			continue
		}
		refused++
		for line := range strings.Lines(err.Error()) {
			if !located.MatchString(line) {
				t.Errorf("without its place: %q, of\n%s", line, text)
			}
		}
	}
	if refused < 500 {
		t.Errorf("only %d were refused", refused)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte("root = \"/r\"\n[network]\nsubnets = [\"10.0.0.0/8\"]\n"))
	f.Add([]byte("[registries.\"a\"]\nendpoints = [\"https://b\"]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := defaults("f").parse("f", data); err != nil && !located.MatchString(err.Error()) {
			t.Errorf("the error does not say where: %v", err)
		}
	})
}
