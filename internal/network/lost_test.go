package network

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func attached(ids ...string) (all []Attached) {
	for _, id := range ids {
		all = append(all, Attached{Pod: Pod{ID: id}})
	}
	return all
}

// damages are what may become of a file.
var damages = map[string]func(t *testing.T, path string){
	"deleted":        func(t *testing.T, path string) { _ = os.Remove(path) },
	"empty":          func(t *testing.T, path string) { writeFile(t, path, "") },
	"other version":  func(t *testing.T, path string) { writeFile(t, path, `{"version": 99, "data": {}}`) },
	"something else": func(t *testing.T, path string) { writeFile(t, path, "\x00\xff") },
	"cut short":      func(t *testing.T, path string) { writeFile(t, path, readFile(t, path)[:50]) },
	"of another type": func(t *testing.T, path string) {
		writeFile(t, path, `{"version": 1, "data": {"Addrs": 7, "Current": 7}}`)
	},
	"a digit turned": func(t *testing.T, path string) {
		text := readFile(t, path)
		writeFile(t, path, strings.Replace(text, `"10.`, `"11.`, 1))
	},
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Whatever becomes of the files that the network keeps, it opens; a pod that
// lives keeps address and host ports, and nobody else gets them.
func TestFilesLost(t *testing.T) {
	w := newWorld(t)
	w.config.Subnets = nil
	w.reopen()
	w.setPodCIDR("10.83.0.0/24")
	older := w.pod("older")
	w.attach(older)
	w.setPodCIDR("10.84.0.0/24")
	port := Port{Protocol: "tcp", HostPort: 8001, ContainerPort: 80}
	pod := w.pod("pod", port)
	result := w.attach(pod)
	w.serve(pod, 80)
	live := []Attached{{pod, result}, {older, Result{}}}
	for _, file := range []string{pod.ID + ".json", rangesFile, rangesCopy} {
		for name, damage := range damages {
			t.Run(file+" "+name, func(t *testing.T) {
				damage(t, filepath.Join(w.config.Root, file))
				w.reopen()
				if err := w.Collect(w.ctx, live); err != nil {
					t.Fatal(err)
				}
				if _, err := w.ask(host, "tcp", "127.0.0.1:8001"); err != nil {
					t.Errorf("the pod's host port: %v", err)
				}
				if l := w.leases.get(pod.ID); l == nil || len(l.Addrs) != 1 || l.Addrs[0] != result.Addrs[0] || len(l.Ports) != 1 || l.Ports[0] != port {
					t.Errorf("the pod's lease is %+v", l)
				}
				if r := w.cidr.ranges.Load(); len(r.all()) != 2 || r.Current[0].String() != "10.84.0.0/24" {
					t.Errorf("ranges %v", r)
				}
				for range 300 { // all of them
					l, err := w.leases.take(newLease(Pod{ID: "other"}, driverBridge))
					if err != nil {
						t.Fatal(err)
					}
					if l.Addrs[0] == result.Addrs[0] {
						t.Fatal("another pod gets the address")
					}
					if err := w.leases.drop(l); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
	w.end(pod)
	w.end(older)
}
