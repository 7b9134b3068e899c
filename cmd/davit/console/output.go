package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// toJSON writes zero values too: a ready pod's state is one.
var toJSON = protojson.MarshalOptions{EmitDefaultValues: true}

// PrintMessage writes a message as JSON, indented the same way every time.
func (c *Console) PrintMessage(m proto.Message) error {
	raw, err := toJSON.Marshal(m)
	if err != nil {
		return err
	}
	return WriteJSON(c.Out, raw)
}

// PrintLine writes a message as JSON, in one line.
func (c *Console) PrintLine(m proto.Message) error {
	raw, err := toJSON.Marshal(m)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil { // protojson varies its spaces
		return err
	}
	b.WriteByte('\n')
	_, err = b.WriteTo(c.Out)
	return err
}

// PrintJSON writes a value of Go as JSON.
func (c *Console) PrintJSON(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return WriteJSON(c.Out, raw)
}

// WriteJSON writes JSON, indented.
func WriteJSON(w io.Writer, raw []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return err
	}
	b.WriteByte('\n')
	_, err := b.WriteTo(w)
	return err
}

// StatusJSON is a status with the runtime's verbose information, which is
// JSON itself where the runtime wrote JSON.
func StatusJSON(status proto.Message, info map[string]string) ([]byte, error) {
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

// PrintTable writes aligned columns.
func (c *Console) PrintTable(header string, rows [][]string) error {
	w := tabwriter.NewWriter(c.Out, 0, 4, 3, ' ', 0)
	fmt.Fprintln(w, strings.ReplaceAll(header, " ", "\t"))
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	return w.Flush()
}

// Age is how long ago a CRI time was, in the largest unit that says enough.
func Age(nanos int64) string {
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

// Short is the part of an ID or digest that people read.
func Short(id string) string {
	return fmt.Sprintf("%.12s", strings.TrimPrefix(id, "sha256:"))
}

// Took is how long something took that began then.
func Took(began time.Time) string {
	d := time.Since(began)
	if d < time.Second {
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// Dash stands for nothing.
func Dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// JoinNonEmpty joins those of the parts that say something.
func JoinNonEmpty(sep string, parts ...string) string {
	var out []string
	for _, p := range parts {
		if p != "" {
			out = append(out, p)
		}
	}
	return strings.Join(out, sep)
}
