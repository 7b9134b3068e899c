package kubelet

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/davit-runtime/davit/criclient/cristream"
)

// secure asks the kubelet's main port, whose certificate is its own.
var secure = &http.Client{
	Timeout:   20 * time.Second,
	Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
}

const port = "https://127.0.0.1:10250"

// session uses running pods through the kubelet's main port, as an API server
// does for kubectl.
func (n *node) session(t *testing.T) {
	for _, protocol := range []cristream.Protocol{cristream.SPDY, cristream.WebSocket} {
		d := &cristream.Dialer{Protocol: protocol, TLS: &tls.Config{InsecureSkipVerify: true}}
		t.Run("exec by "+protocol.String(), func(t *testing.T) { execs(t, d) })
		t.Run("attach by "+protocol.String(), func(t *testing.T) { attaches(t, d) })
		t.Run("port-forward by "+protocol.String(), func(t *testing.T) { forwards(t, d) })
	}
	t.Run("logs", n.logs)
}

// at is the URL of an exec or attach of pod terminal.
func at(what, container string, query url.Values) cristream.Opener {
	return cristream.At(port + "/" + what + "/default/terminal-node/" + container + "?" + query.Encode())
}

func execs(t *testing.T, d *cristream.Dialer) {
	ctx, cancel := context.WithTimeout(t.Context(), times(20*time.Second))
	defer cancel()
	var out, errs bytes.Buffer
	err := d.Exec(ctx, at("exec", "web", url.Values{"command": {"sh", "-c", "echo out; echo err >&2; exit 3"}, "output": {"1"}, "error": {"1"}}),
		cristream.Streams{Stdout: &out, Stderr: &errs})
	var exit *cristream.ExitError
	if !errors.As(err, &exit) || exit.Code != 3 || out.String() != "out\n" || errs.String() != "err\n" {
		t.Errorf("exec wrote %q and %q and ended with %v", out.String(), errs.String(), err)
	}

	data := make([]byte, 1<<20)
	_, _ = rand.Read(data)
	out.Reset()
	// Not each kubelet can tell a command that its standard input has ended, by WebSocket: so it is told how much comes.
	err = d.Exec(ctx, at("exec", "web", url.Values{"command": {"head", "-c", strconv.Itoa(len(data))}, "input": {"1"}, "output": {"1"}}),
		cristream.Streams{Stdin: bytes.NewReader(data), Stdout: &out})
	if err != nil || !bytes.Equal(out.Bytes(), data) {
		t.Errorf("head gave back %d bytes of %d: %v", out.Len(), len(data), err)
	}

	out.Reset()
	sizes := make(chan cristream.Size, 1)
	sizes <- cristream.Size{Width: 123, Height: 45}
	err = d.Exec(ctx, at("exec", "shell", url.Values{"command": {"sh", "-c", "while test \"$(stty size 2> /dev/null)\" != '45 123'; do usleep 50000; done; echo resized"}, "output": {"1"}, "tty": {"1"}}),
		cristream.Streams{Stdout: &out, TTY: true, Resize: sizes})
	if err != nil || strings.TrimSpace(out.String()) != "resized" {
		t.Errorf("with a terminal exec wrote %q: %v", out.String(), err)
	}
}

func attaches(t *testing.T, d *cristream.Dialer) {
	for _, c := range []struct {
		container, say, hear string
		query                url.Values
		tty                  bool
	}{
		{"cat", "one two\n", "heard one two\n", url.Values{"input": {"1"}, "output": {"1"}, "error": {"1"}}, false},
		{"shell", "echo $((6*7))\n", "42\r\n", url.Values{"input": {"1"}, "output": {"1"}, "tty": {"1"}}, true},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), times(20*time.Second))
		in, say := io.Pipe()
		heard := &hearing{want: c.hear, found: cancel}
		go func() { _, _ = io.WriteString(say, c.say) }()
		s := cristream.Streams{Stdin: in, Stdout: heard, TTY: c.tty}
		if !c.tty {
			s.Stderr = io.Discard
		}
		err := d.Attach(ctx, at("attach", c.container, c.query), s)
		_ = say.Close()
		if !heard.yes || !errors.Is(err, context.Canceled) {
			t.Errorf("attached to %s and heard %q: %v", c.container, heard.all.String(), err)
		}
		cancel()
	}
}

// hearing calls found once what it wants was written to it.
type hearing struct {
	want  string
	found func()
	all   bytes.Buffer
	yes   bool
}

func (h *hearing) Write(p []byte) (int, error) {
	h.all.Write(p)
	if !h.yes && strings.Contains(h.all.String(), h.want) {
		h.yes = true
		h.found()
	}
	return len(p), nil
}

func forwards(t *testing.T, d *cristream.Dialer) {
	open := cristream.At(port + "/portForward/default/terminal-node?port=8000&port=8001")
	ctx, cancel := context.WithTimeout(t.Context(), times(20*time.Second))
	defer cancel()
	browser := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialPort(ctx, open, 8000)
	}}}
	defer browser.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://pod/name", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := browser.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || string(text) != "terminal-node\n" {
		t.Errorf("by a forwarded port the pod says %q: %v", text, err)
	}
	conn, err := d.DialPort(ctx, open, 8001)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := echo(conn, 1<<20); err != nil {
		t.Error(err)
	}
}

// echo sends bytes and wants them back.
func echo(conn net.Conn, size int) error {
	data := make([]byte, size)
	_, _ = rand.Read(data)
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(data)
		sent <- err
	}()
	back := make([]byte, size)
	if n, err := io.ReadFull(conn, back); err != nil || !bytes.Equal(back, data) {
		return fmt.Errorf("%d bytes of %d came back: %w", n, size, err)
	}
	return <-sent
}

// echoes asks a server that gives back what it gets.
func echoes(address string) error {
	conn, err := net.DialTimeout("tcp", address, 2*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	return echo(conn, 100)
}

// logs reads a container's log through the kubelet, whole, the end of it, and
// while it grows.
func (n *node) logs(t *testing.T) {
	const url = port + "/containerLogs/default/terminal-node/cat"
	for query, want := range map[string]string{"": "^(heard one two\n)+$", "?tailLines=1": "^heard one two\n$", "?timestamps=true": `^20\S+ heard`} {
		text, err := ask(url + query)
		if err != nil || !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("log%s is %q: %v", query, text, err)
		}
	}
	resp, err := secure.Get(port + "/containerLogs/default/rotate-node/main?follow=true&tailLines=0")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	some := make([]byte, 100)
	if _, err := io.ReadFull(resp.Body, some); err != nil || !strings.HasPrefix(string(some), "line ") {
		t.Errorf("a log that is followed has %q: %v", some, err)
	}
}

// ask gets a text from the kubelet's main port.
func ask(url string) (string, error) {
	resp, err := secure.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(text), err
}

// summary is the part of /stats/summary that is looked at.
// Kubernetes: k8s.io/kubelet/pkg/apis/stats/v1alpha1.
type summary struct {
	Node struct {
		Runtime struct{ ImageFs usage }
	}
	Pods []struct {
		PodRef       struct{ Name string }
		CPU          struct{ UsageCoreNanoSeconds uint64 }
		Memory       struct{ WorkingSetBytes uint64 }
		Network      struct{ RxBytes *uint64 }
		ProcessStats struct {
			ProcessCount uint64 `json:"process_count"`
		} `json:"process_stats"`
		Containers []struct {
			Name   string
			CPU    struct{ UsageCoreNanoSeconds uint64 }
			Memory struct{ WorkingSetBytes uint64 }
			Rootfs usage
			Logs   usage
		}
	}
}

type usage struct{ UsedBytes *uint64 }

// stats looks for the figures of a pod in what the kubelet tells of all. Those
// of its network are there only if the kubelet takes figures from the CRI: else
// it looks for them at a process of the pod's own, which a pod of davit has not.
func (n *node) stats(t *testing.T, name string, network bool) {
	eventually(t, time.Minute, func() error {
		text, err := ask(port + "/stats/summary")
		if err != nil {
			return err
		}
		var s summary
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			return err
		}
		if s.Node.Runtime.ImageFs.UsedBytes == nil || *s.Node.Runtime.ImageFs.UsedBytes == 0 {
			return errors.New("images take no space")
		}
		for _, p := range s.Pods {
			if p.PodRef.Name != name+"-node" {
				continue
			}
			if p.CPU.UsageCoreNanoSeconds == 0 || p.Memory.WorkingSetBytes == 0 || network && p.Network.RxBytes == nil {
				return fmt.Errorf("of the pod there is %+v", p)
			}
			for _, c := range p.Containers {
				if c.CPU.UsageCoreNanoSeconds == 0 || c.Memory.WorkingSetBytes == 0 || c.Rootfs.UsedBytes == nil || c.Logs.UsedBytes == nil {
					return fmt.Errorf("of container %s there is %+v", c.Name, c)
				}
			}
			if len(p.Containers) > 0 {
				return nil
			}
		}
		return fmt.Errorf("nothing about %s", name)
	})
}

// metrics looks for a pod in what monitoring systems scrape.
func (n *node) metrics(t *testing.T, name string) {
	wanted := map[string][]string{
		"/metrics": {`kubelet_running_pods [1-9]`, `kubelet_runtime_operations_total\{operation_type="run_podsandbox"\} [1-9]`},
		"/metrics/cadvisor": {
			`container_cpu_usage_seconds_total\{[^}]*pod="` + name + `-node"[^}]*\}`,
			`container_memory_working_set_bytes\{[^}]*pod="` + name + `-node"[^}]*\}`,
			`container_cpu_usage_seconds_total\{container="web",[^}]*image="[^"]+",name="[0-9a-f]{64}",namespace="default",pod="` + name + `-node"\}`,
			`container_network_receive_bytes_total\{[^}]*interface="eth0",[^}]*pod="` + name + `-node"\} [1-9]`,
		},
		"/metrics/probes": {`prober_probe_total\{[^}]*result="successful"[^}]*\} [1-9]`},
	}
	if n.minor() >= 29 {
		wanted["/metrics/resource"] = []string{`container_memory_working_set_bytes\{[^}]*pod="` + name + `-node"[^}]*\} [1-9]`, `scrape_error 0|resource_scrape_error 0`}
	}
	for path, patterns := range wanted {
		eventually(t, time.Minute, func() error {
			text, err := ask(port + path)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			for _, pattern := range patterns {
				if !regexp.MustCompile(pattern).MatchString(text) {
					return fmt.Errorf("%s has no %s", path, pattern)
				}
			}
			return nil
		})
	}
}

// With the kubelet's PodAndContainerStatsFromCRI, figures and metrics are
// davit's own, those of networks too.
func TestStatsFromCRI(t *testing.T) {
	kubeletOf(t, newest)
	n := newNode(t, newest, newRuntime(t, ""), map[string]any{"featureGates": map[string]bool{"PodAndContainerStatsFromCRI": true}})
	n.put(n.manifest("probes"))
	n.stats(t, "probes", true)
	n.metrics(t, "probes")
	eventually(t, time.Minute, func() error {
		text, err := ask(port + "/metrics/cadvisor")
		if err == nil && !regexp.MustCompile(`container_network_receive_bytes_total\{[^}]*pod="probes-node"[^}]*\} [1-9]`).MatchString(text) {
			err = errors.New("no metrics of the pod's network")
		}
		return err
	})
	n.take("probes")
	n.runtime.empty(t)
}

// refused returns the calls of the CRI that failed, by the kubelet's count.
// Calls for what may be gone meanwhile, and probes, may.
func (n *node) refused(t *testing.T) []string {
	var text string
	eventually(t, time.Minute, func() (err error) { // a kubelet that has just begun does not serve yet
		text, err = ask(port + "/metrics")
		return err
	})
	var failed []string
	for _, found := range regexp.MustCompile(`kubelet_runtime_operations_errors_total\{operation_type="([a-z_]+)"\} (\S+)`).FindAllStringSubmatch(text, -1) {
		if may := []string{"exec_sync", "container_status", "podsandbox_status"}; !slices.Contains(may, found[1]) {
			failed = append(failed, found[1]+" "+found[2])
		}
	}
	return failed
}
