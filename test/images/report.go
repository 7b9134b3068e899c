package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/davit-runtime/davit/test/images/debian"
)

// figures are what one run came to, by the name of the quantity.
type figures map[string]float64

// String lists them in the order of their names.
func (f figures) String() string {
	var parts []string
	for name, value := range f {
		parts = append(parts, fmt.Sprintf("%s %.2f", name, value))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// A report is what one run of the program found.
type report struct {
	When    time.Time   `json:"when"`
	Kernel  string      `json:"kernel"`
	CPUs    int         `json:"cpus"`
	Rival   string      `json:"rival"`
	Image   debian.Made `json:"image"`
	Tables  []*table    `json:"tables"`
	Helpers string      `json:"helpers"`
}

// A table compares contestants; Runs has their figures in the order of the runs.
type table struct {
	Title string               `json:"title"`
	Names []string             `json:"names"` // the first is what the others are compared with
	Runs  map[string][]figures `json:"runs"`
	rows  []row
}

// A row is a quantity of which less is better.
type row struct {
	name  string
	limit float64 // davit's share of what the first contestant has, if not 0
	most  float64 // what davit may have at most, if not 0
}

func newReport(made debian.Made, o options) *report {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	r := &report{When: time.Now().UTC().Truncate(time.Second), Kernel: strings.TrimSpace(string(kernel)), CPUs: runtime.NumCPU(), Image: made}
	if out, err := exec.Command(o.rival, "--version").Output(); err == nil {
		r.Rival = strings.TrimSpace(string(out))
	}
	r.Helpers = "containerd decompresses by itself, as it does where neither igzip nor unpigz is installed"
	if o.helpers {
		r.Helpers = "containerd may use what is on PATH:"
		for _, name := range []string{"igzip", "unpigz"} {
			if path, err := exec.LookPath(name); err == nil {
				r.Helpers += " " + path
			}
		}
	}
	return r
}

func (r *report) table(title string, rows []row) *table {
	t := &table{Title: title, Runs: map[string][]figures{}, rows: rows}
	r.Tables = append(r.Tables, t)
	return t
}

func (t *table) add(name string, f figures) {
	if !slices.Contains(t.Names, name) {
		t.Names = append(t.Names, name)
	}
	t.Runs[name] = append(t.Runs[name], f)
}

// least is the smallest figure of all runs: the others were disturbed more.
func (t *table) least(name, quantity string) float64 {
	least := t.Runs[name][0][quantity]
	for _, f := range t.Runs[name] {
		least = min(least, f[quantity])
	}
	return least
}

// print prints all tables and returns how many limits are exceeded.
func (r *report) print(out io.Writer) (missed int) {
	fmt.Fprintf(out, "davit beside %s; kernel %s, %d CPUs, %s\n%d layers of %d Debian packages, %d entries, %d MB unpacked\n%s\n",
		r.Rival, r.Kernel, r.CPUs, r.When.Format(time.RFC3339), r.Image.Layers, len(r.Image.Packages), r.Image.Entries, r.Image.Bytes/1e6, r.Helpers)
	for _, t := range r.Tables {
		missed += t.print(out)
	}
	return missed
}

func (t *table) print(out io.Writer) (missed int) {
	runs := len(t.Runs[t.Names[0]])
	fmt.Fprintf(out, "\n%s; the least of %d runs\n", t.Title, runs)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\t%s\tdavit : %s\tlimit\t\t\n", strings.Join(t.Names, "\t"), t.Names[0])
	for _, q := range t.rows {
		fmt.Fprintf(w, "%s\t", q.name)
		for _, name := range t.Names {
			fmt.Fprintf(w, "%.2f\t", t.least(name, q.name))
		}
		has := t.least("davit", q.name)
		ratio := has / t.least(t.Names[0], q.name)
		verdict, limit := "ok", fmt.Sprintf("%.2f", q.limit)
		switch {
		case q.most != 0:
			limit = fmt.Sprintf("%.0f MB", q.most)
		case q.limit == 0: // shown only
			verdict, limit = "", ""
		}
		if q.limit != 0 && !(ratio <= q.limit) || q.most != 0 && !(has <= q.most) {
			verdict = "EXCEEDED"
			missed++
		}
		fmt.Fprintf(w, "%.3f\t%s\t%s\t\n", ratio, limit, verdict)
	}
	_ = w.Flush()
	return missed
}

func (r *report) write(file string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}
