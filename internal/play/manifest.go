package play

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	yamlnode "go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// maxManifestBytes bounds a manifest; the API server's own limit is 3 MiB.
const maxManifestBytes = 3 << 20

// A Problem is one thing in a manifest that stands in the way.
type Problem struct {
	Line int    // 1-based, 0 if unknown
	Path string // such as spec.containers[0].image, empty for the document
	Text string
}

// A ManifestError lists everything that is wrong with a manifest.
type ManifestError struct {
	File     string
	Problems []Problem
}

// Error has one line for each problem: file, line, path and text.
func (e *ManifestError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		where := e.File
		if p.Line > 0 {
			where = fmt.Sprintf("%s:%d", e.File, p.Line)
		}
		if p.Path != "" {
			where += ": " + p.Path
		}
		lines[i] = where + ": " + p.Text
	}
	return strings.Join(lines, "\n")
}

// Read decodes the Pods in a manifest of YAML or JSON documents, each a Pod or a
// List of Pods, strictly, and fills in the API server's defaults. file is for
// messages only.
//
// Any trouble is a *ManifestError with all problems of all documents: unknown
// fields, fields that davit play does not support, values that are not valid.
func Read(file string, data []byte) ([]*corev1.Pod, error) {
	if len(data) > maxManifestBytes {
		return nil, &ManifestError{file, []Problem{{Text: fmt.Sprintf("larger than %d bytes", maxManifestBytes)}}}
	}
	var pods []*corev1.Pod
	var problems []Problem
	var docs []*document // each of one Pod
	for _, doc := range split(data) {
		some, found := doc.open()
		problems = append(problems, found...)
		docs = append(docs, some...)
	}
	for _, doc := range docs {
		pod, found := doc.decode()
		if pod != nil && len(found) == 0 {
			setDefaults(pod)
			found = doc.locate(validate(pod))
		}
		problems = append(problems, found...)
		pods = append(pods, pod)
	}
	if len(problems) == 0 && len(pods) == 0 {
		problems = []Problem{{Text: "holds no Pod: there is nothing in it, save perhaps comments"}}
	}
	if len(problems) == 0 {
		problems = samePods(pods, docs)
	}
	if len(problems) > 0 {
		slices.SortStableFunc(problems, func(a, b Problem) int { return a.Line - b.Line })
		return nil, &ManifestError{file, problems}
	}
	return pods, nil
}

// samePods finds Pods of one name, of which only the first could be made.
func samePods(pods []*corev1.Pod, docs []*document) (found []Problem) {
	seen := map[string]bool{}
	for i, pod := range pods {
		if seen[podName(pod)] {
			path := join(docs[i].at, "metadata.name")
			found = append(found, Problem{Line: docs[i].line(path), Path: path, Text: fmt.Sprintf("%s is the name of two Pods", podName(pod))})
		}
		seen[podName(pod)] = true
	}
	return found
}

type document struct {
	text  []byte
	above int            // lines before text
	lines map[string]int // path → line
	raw   []byte         // what it is in JSON; set by open
	at    string         // where that stands in the text: items[0]; empty if it is all
}

// isSeparator reports whether a line is "---", perhaps with a comment.
func isSeparator(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	rest = bytes.TrimLeft(rest, " \t")
	return ok && (len(bytes.TrimSpace(rest)) == 0 || rest[0] == '#' && len(rest) < len(line)-len("---"))
}

// split cuts a manifest at its "---" lines and drops empty documents.
func split(data []byte) []*document {
	var docs []*document
	cur := &document{}
	used, line := false, 0
	flush := func() {
		if used {
			docs = append(docs, cur)
		}
	}
	for l := range bytes.Lines(data) {
		line++
		if isSeparator(l) {
			flush()
			cur, used = &document{above: line}, false
			continue
		}
		cur.text = append(cur.text, l...)
		if t := bytes.TrimSpace(l); len(t) > 0 && t[0] != '#' {
			used = true
		}
	}
	flush()
	return docs
}

// open reads the document and returns it, or the items of a List as one each.
func (d *document) open() ([]*document, []Problem) {
	var err error
	if d.raw, err = yaml.YAMLToJSONStrict(d.text); err != nil {
		return nil, []Problem{d.yamlProblem(err)}
	}
	if p := d.more(); p != nil {
		return nil, []Problem{*p}
	}
	d.index()
	var list struct {
		APIVersion string            `json:"apiVersion"`
		Kind       string            `json:"kind"`
		Metadata   map[string]any    `json:"metadata"` // as kubectl get writes it: of no meaning
		Items      []json.RawMessage `json:"items"`
	}
	strict, err := kjson.UnmarshalStrict(d.raw, &list)
	if list.APIVersion != "v1" || list.Kind != "List" {
		return []*document{d}, nil
	}
	if err != nil || len(strict) > 0 {
		err = errors.Join(append(strict, err)...)
		return nil, d.locate([]Problem{{Text: "the List: " + oneLine(err)}})
	}
	var items []*document
	for i, raw := range list.Items {
		items = append(items, &document{above: d.above, lines: d.lines, raw: raw, at: fmt.Sprintf("items[%d]", i)})
	}
	return items, nil
}

// decode returns the Pod, or nil with what is wrong.
func (d *document) decode() (*corev1.Pod, []Problem) {
	var tree any
	if err := json.Unmarshal(d.raw, &tree); err != nil {
		return nil, []Problem{{Line: d.above + 1, Text: oneLine(err)}}
	}
	if found := checkKind(tree); len(found) > 0 {
		return nil, d.locate(found)
	}
	if found := badQuantities(tree); len(found) > 0 {
		return nil, d.locate(found)
	}
	pod := &corev1.Pod{}
	strict, err := kjson.UnmarshalStrict(d.raw, pod)
	if err != nil {
		return nil, d.locate([]Problem{d.typeProblem(err, tree)})
	}
	var found []Problem
	unknown := map[string]bool{}
	for _, e := range strict {
		p := Problem{Text: oneLine(e)}
		var fe kjson.FieldError
		if errors.As(e, &fe) {
			p.Path = fe.FieldPath()
			p.Text = "no such field in a Pod"
			unknown[p.Path] = true
		}
		found = append(found, p)
	}
	for _, p := range unsupported(tree) {
		if !unknown[p.Path] {
			found = append(found, p)
		}
	}
	return pod, d.locate(found)
}

// yamlLine is where the decoder of YAML says that a problem is.
var yamlLine = regexp.MustCompile(`(?:unmarshal errors: )?line ([0-9]+): `)

// yamlProblem is the decoder's error at its line.
func (d *document) yamlProblem(err error) Problem {
	text, line := oneLine(err), 1
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = strings.Replace(text, m[0], "", 1)
	}
	return Problem{Line: d.above + line, Text: text}
}

// more finds what stands after the first document where no line of "---" tells
// of another, as in a stream of JSON. The decoder would pass over it in silence.
func (d *document) more() *Problem {
	decoder := yamlnode.NewDecoder(bytes.NewReader(d.text))
	var first, second yamlnode.Node
	if decoder.Decode(&first) != nil {
		return nil // the other decoder took it
	}
	err := decoder.Decode(&second)
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		second.Line = d.yamlProblem(err).Line - d.above
	}
	return &Problem{Line: d.above + max(second.Line, 1), Text: "something follows the first document; put a line of --- between documents"}
}

// typeProblem names the first value that has the type complained of: the
// decoder's error does not say which of a list it means.
func (d *document) typeProblem(err error, tree any) Problem {
	var te *json.UnmarshalTypeError
	if !errors.As(err, &te) {
		return Problem{Text: oneLine(err)}
	}
	kind, _, _ := strings.Cut(te.Value, " ") // "number 1.5"
	p := Problem{Path: te.Field, Text: te.Value + " is not a " + typeName(te.Type)}
	switch {
	case te.Type.Kind() == reflect.String && kind == "bool":
		p.Text += "; put it in quotes (in YAML, a plain y, n, on, off, yes or no is one, too)"
	case te.Type.Kind() == reflect.String && kind == "number":
		p.Text += "; put it in quotes"
	}
	walk(tree, "", func(path string, value any) {
		if p.Path == te.Field && indexes.ReplaceAllString(path, "") == te.Field && jsonType(value) == kind {
			p.Path = path
		}
	})
	return p
}

// typeName is what YAML calls a type.
func typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Slice:
		return "list"
	case reflect.Struct, reflect.Map, reflect.Pointer:
		return "mapping"
	}
	return t.Kind().String()
}

var indexes = regexp.MustCompile(`\[[0-9]+\]`)

// jsonType is what the decoder calls the type of a value.
func jsonType(value any) string {
	switch value.(type) {
	case bool:
		return "bool"
	case float64:
		return "number"
	case string:
		return "string"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	}
	return ""
}

// walk visits a decoded document and all that is in it, in order.
func walk(value any, path string, visit func(path string, value any)) {
	visit(path, value)
	switch v := value.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			walk(v[key], join(path, key), visit)
		}
	case []any:
		for i, item := range v {
			walk(item, fmt.Sprintf("%s[%d]", path, i), visit)
		}
	}
}

// quantityPath matches the fields of a Pod that are quantities. hugeExponent
// is what the decoder would compute with for hours.
var (
	quantityPath = regexp.MustCompile(`\.(limits|requests|overhead|capacity|allocatedResources)\.|\.(sizeLimit|divisor)$`)
	hugeExponent = regexp.MustCompile(`[eE][+-]?0*[1-9][0-9]{2,}`)
)

// badQuantities finds what the decoder's error would not name, or what the
// decoder must not see.
func badQuantities(tree any) []Problem {
	var found []Problem
	walk(tree, "", func(path string, value any) {
		if v, ok := value.(string); ok && quantityPath.MatchString(path) && !isQuantity(v) {
			found = append(found, Problem{Path: path, Text: fmt.Sprintf("%q is not a quantity such as 100m, 2, 64Mi", v)})
		}
	})
	return found
}

func isQuantity(s string) bool {
	if hugeExponent.MatchString(s) {
		return false
	}
	_, err := resource.ParseQuantity(s)
	return err == nil
}

// index notes the line of each field.
func (d *document) index() {
	d.lines = map[string]int{}
	var root yamlnode.Node
	if yamlnode.Unmarshal(d.text, &root) != nil || len(root.Content) == 0 {
		return // lines stay unknown; the other decoder took the text
	}
	d.indexNode("", root.Content[0])
}

func (d *document) indexNode(path string, n *yamlnode.Node) {
	switch n.Kind {
	case yamlnode.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			p := join(path, key.Value)
			d.lines[p] = d.above + key.Line
			d.indexNode(p, n.Content[i+1])
		}
	case yamlnode.SequenceNode:
		for i, item := range n.Content {
			p := fmt.Sprintf("%s[%d]", path, i)
			d.lines[p] = d.above + item.Line
			d.indexNode(p, item)
		}
	}
}

// line returns the line of path, or of the nearest thing that contains it.
func (d *document) line(path string) int {
	for path != "" {
		if n := d.lines[path]; n > 0 {
			return n
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return d.above + 1
}

// locate says of problems where they stand, in the whole document.
func (d *document) locate(found []Problem) []Problem {
	for i := range found {
		p := &found[i]
		if d.at != "" {
			p.Path = strings.TrimSuffix(join(d.at, p.Path), ".")
		}
		if p.Line == 0 {
			p.Line = d.line(p.Path)
		}
	}
	return found
}

func checkKind(tree any) []Problem {
	m, ok := tree.(map[string]any)
	if !ok {
		return []Problem{{Text: "is not a Kubernetes object"}}
	}
	if m["apiVersion"] == "v1" && m["kind"] == "Pod" {
		return nil
	}
	return []Problem{{Path: "kind", Text: fmt.Sprintf(
		"apiVersion %v, kind %v: davit play takes only v1 Pod, and v1 List of them; anything else needs a cluster", m["apiVersion"], m["kind"])}}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
