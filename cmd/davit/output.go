package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/davit-runtime/davit/internal/play"
)

// toJSON writes zero values too: a ready pod's state is one.
var toJSON = protojson.MarshalOptions{EmitDefaultValues: true}

// printJSON writes a CRI message as JSON, indented the same way every time.
func (a *app) printJSON(m proto.Message) error {
	raw, err := toJSON.Marshal(m)
	if err != nil {
		return err
	}
	return writeJSON(a.out, raw)
}

func writeJSON(w io.Writer, raw []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return err
	}
	b.WriteByte('\n')
	_, err := b.WriteTo(w)
	return err
}

// statusJSON is a status with the runtime's verbose information, which is
// JSON itself where the runtime wrote JSON.
func statusJSON(status proto.Message, info map[string]string) ([]byte, error) {
	raw, err := toJSON.Marshal(status)
	if err != nil {
		return nil, err
	}
	details := map[string]json.RawMessage{}
	for k, v := range info {
		if details[k] = json.RawMessage(v); !json.Valid(details[k]) {
			if details[k], err = json.Marshal(v); err != nil {
				return nil, err
			}
		}
	}
	return json.Marshal(struct {
		Status json.RawMessage            `json:"status"`
		Info   map[string]json.RawMessage `json:"info,omitempty"`
	}{raw, details})
}

// printTable writes aligned columns.
func (a *app) printTable(header string, rows [][]string) error {
	w := tabwriter.NewWriter(a.out, 0, 4, 3, ' ', 0)
	fmt.Fprintln(w, strings.ReplaceAll(header, " ", "\t"))
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	return w.Flush()
}

// age is how long ago a CRI time was, in the largest unit that says enough.
func age(nanos int64) string {
	if nanos <= 0 {
		return "-"
	}
	switch d := time.Since(time.Unix(0, nanos)); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(max(d, 0).Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// short is the part of an ID or digest that people read.
func short(id string) string {
	return fmt.Sprintf("%.12s", strings.TrimPrefix(id, "sha256:"))
}

// steps shows what is done, a line for each step when it has ended, with the
// time it took. On a terminal a pull shows that it is under way; the CRI tells
// nothing of how far it is.
type steps struct {
	out      io.Writer
	terminal bool
}

func newSteps(out io.Writer) *steps {
	f, ok := out.(*os.File)
	return &steps{out: out, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

// step begins a step; end prints its line.
func (s *steps) step(what, name string) (end func(outcome string)) {
	began := time.Now()
	stop := func() {}
	if s.terminal && what == play.StepImage {
		stop = s.spin(what, name)
	}
	return func(outcome string) {
		stop()
		if name != "" {
			outcome = name + "  " + outcome
		}
		fmt.Fprintf(s.out, "  %-10s %-60s %9s\n", what, outcome, took(began))
	}
}

func (s *steps) spin(what, name string) (stop func()) {
	progress := mpb.New(mpb.WithOutput(s.out))
	bar := progress.New(0, mpb.SpinnerStyle(), mpb.BarWidth(1),
		mpb.PrependDecorators(decor.Name(fmt.Sprintf("  %-10s %s ", what, name))),
		mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_GO)))
	return func() {
		bar.Abort(true)
		progress.Wait()
	}
}

func took(began time.Time) string {
	d := time.Since(began)
	if d < time.Second {
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}
