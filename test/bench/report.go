package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// A report is what one run of bench found.
type report struct {
	When    time.Time `json:"when"`
	Kernel  string    `json:"kernel"`
	CPUs    int       `json:"cpus"`
	Runtime string    `json:"runtime"`
	Results []result  `json:"results"`
}

// A result is one measured quantity: a distribution, or with N = 1 one figure.
type result struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	N      int     `json:"n"`
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	P90    float64 `json:"p90"`
	Max    float64 `json:"max"`
}

func newReport(name, version string) *report {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return &report{
		When: time.Now().UTC().Truncate(time.Second), Kernel: strings.TrimSpace(string(kernel)),
		CPUs: runtime.NumCPU(), Runtime: name + " " + version,
	}
}

// add puts a quantity into the report; one without values is left out.
func (r *report) add(name, unit string, values ...float64) {
	if len(values) == 0 {
		return
	}
	slices.Sort(values)
	at := func(q float64) float64 { return values[int(q*float64(len(values)-1)+0.5)] }
	r.Results = append(r.Results, result{name, unit, len(values), values[0], at(0.5), at(0.9), values[len(values)-1]})
}

// addTimes is add in milliseconds.
func (r *report) addTimes(name string, times []time.Duration) {
	var ms []float64
	for _, d := range times {
		ms = append(ms, float64(d.Microseconds())/1000)
	}
	r.add(name, "ms", ms...)
}

func (r *report) print(out io.Writer) {
	fmt.Fprintf(out, "%s, kernel %s, %d CPUs, %s\n\n", r.Runtime, r.Kernel, r.CPUs, r.When.Format(time.RFC3339))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tunit\tn\tmin\tmedian\tp90\tmax\t")
	for _, q := range r.Results {
		if q.N == 1 {
			fmt.Fprintf(w, "%s\t%s\t1\t\t%.2f\t\t\t\n", q.Name, q.Unit, q.Median)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%.2f\t%.2f\t%.2f\t%.2f\t\n", q.Name, q.Unit, q.N, q.Min, q.Median, q.P90, q.Max)
	}
	_ = w.Flush()
}
