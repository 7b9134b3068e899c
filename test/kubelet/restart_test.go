package kubelet

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// restless are pods that are restarted, or tried again, whatever davitd does.
var restless = []string{"crash", "liveness", "nonroot", "sharedpid", "unready"}

// lives returns what must stay as it is of all pods that run and of all that
// are over: identities, counts of restarts, codes, addresses.
func (n *node) lives() map[string]string {
	f := map[string]string{}
	for _, p := range n.list() {
		name := plain(&p)
		if slices.Contains(restless, name) {
			continue
		}
		for key, value := range facts(&p) {
			_, what, of := strings.Cut(key, ".")
			// Of pods that are over, a kubelet that was restarted knows no address.
			if key == "phase" || key == "address" && p.Status.Phase == corev1.PodRunning || of && what != "message" {
				f[name+"."+key] = value
			}
		}
	}
	return f
}

// troubled matches what a kubelet says when it holds its runtime for down: its
// node is not Ready then.
var troubled = regexp.MustCompile(`(?i)container runtime is down|runtime network not ready|runtime not ready|Skipping pod synchronization|PLEG is not healthy`)

// outage is how long davitd stays away. It grows less than other times do on a
// slow machine: a kubelet holds its runtime for down after 30 s on any.
func outage() time.Duration { return min(times(1500*time.Millisecond), 5*time.Second) }

// bounce ends davitd by end and starts it again after a moment in which the
// kubelet asks in vain. The node must be as it was, within 2 s of davitd's
// start, and no pod may have noticed.
func (n *node) bounce(t *testing.T, end func()) {
	before, mark := n.lives(), len(n.log())
	end()
	time.Sleep(outage())
	n.back(t, before, mark)
}

// back starts davitd and looks at node and pods.
func (n *node) back(t *testing.T, before map[string]string, mark int) {
	t.Helper()
	began := time.Now()
	if err := n.runtime.davit.Start(); err != nil {
		t.Fatal(err)
	}
	serves := time.Since(began)
	if err := n.runtime.ready(); err != nil {
		t.Errorf("once davitd serves, the node would not be Ready: %v", err)
	}
	took := time.Since(began)
	if took > times(2*time.Second) {
		t.Errorf("the node would be Ready again after %s, want 2 s", took)
	}
	t.Logf("figure: davitd serves %d ms after its start, ready %d ms", serves.Milliseconds(), took.Milliseconds())
	// A kubelet looks at its runtime's status each 5 s, at pods each second.
	time.Sleep(6 * time.Second)
	if err := n.healthy(); err != nil {
		t.Error(err)
	}
	if said := troubled.FindString(n.log()[mark:]); said != "" {
		t.Errorf("the kubelet says %q", said)
	}
	eventually(t, 10*time.Second, func() error { return same(before, n.lives()) })
}

// ready asks the runtime what a kubelet asks to find out whether it is up.
func (r *runtime) ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), times(2*time.Second))
	defer cancel()
	c, err := testkit.Dial(r.endpoint)
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return err
	}
	for _, condition := range s.Status.Conditions {
		if !condition.Status {
			return fmt.Errorf("%s: %s", condition.Type, condition.Message)
		}
	}
	return nil
}

// same compares what was with what is.
func same(before, after map[string]string) error {
	var changed []string
	for _, key := range slices.Sorted(maps.Keys(before)) {
		if before[key] != after[key] {
			changed = append(changed, fmt.Sprintf("%s was %q, is %q", key, before[key], after[key]))
		}
	}
	if len(before) == 0 {
		return errors.New("there were no pods")
	}
	if len(changed) > 0 {
		return errors.New(strings.Join(changed, "; "))
	}
	return nil
}

// works puts a pod, waits for it and takes it away: the runtime works.
func (n *node) works(t *testing.T, name string) {
	t.Helper()
	p := n.manifest("terminal")
	p.Name = name
	n.put(p)
	eventually(t, time.Minute, func() error {
		p := n.pod(name)
		if p == nil {
			return errors.New("the kubelet does not know it")
		}
		return missing(map[string]string{"ready": "True"}, facts(p))
	})
	n.take(name)
}

// rotation waits until a log was rotated and reads it whole: no line may be
// missing, none be there twice.
func (n *node) rotation(t *testing.T) {
	dir := ""
	eventually(t, time.Minute, func() error {
		found, _ := filepath.Glob("/var/log/pods/default_rotate-node_*/main")
		files, _ := filepath.Glob("/var/log/pods/default_rotate-node_*/main/0.log.*")
		if len(found) != 1 || len(files) < 3 {
			return fmt.Errorf("in %v there are %v", found, files)
		}
		dir = found[0]
		return nil
	})
	// A file may be renamed or packed meanwhile; a lost line stays lost.
	eventually(t, 20*time.Second, func() error {
		files, _ := filepath.Glob(filepath.Join(dir, "0.log.*"))
		slices.Sort(files)
		var all bytes.Buffer
		for _, file := range append(files, filepath.Join(dir, "0.log")) {
			if err := unpack(&all, file); err != nil {
				return err
			}
		}
		next := 1
		for lines := bufio.NewScanner(&all); lines.Scan(); next++ {
			if !strings.Contains(lines.Text(), fmt.Sprintf(" F line %d of ", next)) {
				return fmt.Errorf("line %d is %q", next, lines.Text())
			}
		}
		if next < 1000 {
			return fmt.Errorf("only %d lines", next-1)
		}
		return nil
	})
}

func unpack(to io.Writer, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	var from io.Reader = f
	if strings.HasSuffix(file, ".gz") {
		if from, err = gzip.NewReader(f); err != nil {
			return err
		}
	}
	_, err = io.Copy(to, from)
	return err
}

// mountTmpfs mounts an empty file system until the test's end.
func mountTmpfs(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("later", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}
