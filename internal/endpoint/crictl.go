package endpoint

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"
)

// crictl's configuration. Source: cri-tools, docs/crictl.md.
const crictlFile = "/etc/crictl.yaml"

// Crictl is what crictl's configuration says of endpoints.
type Crictl struct {
	File           string // that was looked at
	Runtime, Image Setting
	Timeout        time.Duration // of connecting; 0: not set

	there bool
}

// ReadCrictl reads the node's crictl configuration, or the file that named
// says instead, which must be there then. Errors name file and line. Keys that
// are not of endpoints may be anything.
func ReadCrictl(root, named string) (Crictl, error) {
	c := Crictl{File: cmp.Or(named, crictlFile)}
	path := c.File
	if filepath.IsAbs(path) {
		path = filepath.Join(root, path)
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && named == "" {
		return c, nil
	}
	if err != nil {
		var at *fs.PathError
		if errors.As(err, &at) {
			err = at.Err
		}
		if named != "" {
			return c, fmt.Errorf("%s, which %s names: %w", c.File, CrictlEnv, err)
		}
		return c, fmt.Errorf("%s: %w", c.File, err)
	}
	c.there = true
	return c, c.parse(data)
}

// yamlPlace is how the YAML library begins its errors. Its lines are often
// wrong by one.
var yamlPlace = regexp.MustCompile(`^yaml: (?:line \d+: )?`)

func (c *Crictl) parse(data []byte) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("%s:%d: not YAML: %s", c.File, badLine(data), yamlPlace.ReplaceAllString(err.Error(), ""))
	}
	if len(doc.Content) == 0 {
		return nil // empty
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode && top.Tag != "!!null" {
		return fmt.Errorf("%s:%d: not a list of settings such as runtime-endpoint: unix:///run/davit/davit.sock", c.File, top.Line)
	}
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		from := fmt.Sprintf("%s:%d", c.File, key.Line)
		var to *Setting
		switch key.Value {
		case "runtime-endpoint":
			to = &c.Runtime
		case "image-endpoint":
			to = &c.Image
		case "timeout":
			seconds, err := strconv.Atoi(value.Value)
			if (err != nil || seconds < 0) && value.Tag != "!!null" {
				return fmt.Errorf("%s: timeout is %q; it is a number of seconds", from, value.Value)
			}
			c.Timeout = time.Duration(seconds) * time.Second
			continue
		default:
			continue
		}
		if value.Kind != yaml.ScalarNode {
			return fmt.Errorf("%s: %s is not one text such as unix:///run/davit/davit.sock", from, key.Value)
		}
		if *to = (Setting{}); value.Tag != "!!null" && value.Value != "" {
			*to = Setting{value.Value, from}
		}
	}
	return nil
}

// badLine returns the first line with which data is no YAML any more.
func badLine(data []byte) int {
	end, number := 0, 0
	for line := range bytes.Lines(data) {
		end, number = end+len(line), number+1
		if yaml.Unmarshal(data[:end], new(yaml.Node)) != nil {
			break
		}
	}
	return number
}

// place is told where c does not name the runtime.
func (c Crictl) place() Place {
	if !c.there {
		return Place{c.File, "there is no such file"}
	}
	return Place{c.File, "has no runtime-endpoint"}
}
