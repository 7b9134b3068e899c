package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/davit-runtime/davit/internal/cdi"
	"github.com/davit-runtime/davit/internal/cri"
	"github.com/davit-runtime/davit/internal/network"
	"github.com/davit-runtime/davit/internal/ocispec"
	"github.com/davit-runtime/davit/internal/settings"
)

// A config is the configuration file. Every key may be left out.
type config struct {
	Root           string                   `toml:"root"`
	State          string                   `toml:"state"`
	Log            logConfig                `toml:"log"`
	CgroupDriver   string                   `toml:"cgroup_driver"` // auto, systemd or cgroupfs
	DefaultRuntime string                   `toml:"default_runtime"`
	Runtimes       map[string]runtimeConfig `toml:"runtimes"` // by RuntimeClass handler
	Network        networkConfig            `toml:"network"`
	Images         imagesConfig             `toml:"images"`
	NRI            nriConfig                `toml:"nri"`
	Streaming      streamingConfig          `toml:"streaming"`
	Ulimits        ocispec.Ulimits          `toml:"ulimits"`
	CDISpecDirs    []string                 `toml:"cdi_spec_dirs"` // the last one wins; /etc/cdi and /var/run/cdi if left out

	surface
	sources // of images

	text *settings.File // nil without a file
}

// A surface is what is served, and where.
type surface struct {
	Socket         string        `toml:"socket"`
	ImageSocket    string        `toml:"image_socket"`    // empty: none beside socket
	CadvisorSocket string        `toml:"cadvisor_socket"` // empty: none beside socket
	CRIVersions    []cri.Version `toml:"cri_versions"`    // empty: all
}

type logConfig struct {
	Level  logLevel `toml:"level"`  // debug, info, warn or error
	Format string   `toml:"format"` // text or json
}

type runtimeConfig struct {
	Path string `toml:"path"` // empty: the program of the handler's name on PATH
}

type networkConfig struct {
	Bridge          string         `toml:"bridge"`
	Subnets         []netip.Prefix `toml:"subnets"`
	CNIConfDir      string         `toml:"cni_conf_dir"`
	CNIBinDirs      []string       `toml:"cni_bin_dirs"`
	CNIConfTemplate string         `toml:"cni_conf_template"` // a file; empty: none
	CNIDelPatience  duration       `toml:"cni_del_patience"`  // 10m if left out
	MTU             int            `toml:"mtu"`
}

// maxState is what the kernel allows for a socket's path, less the longest name
// of one below it. kernel: unix(7), sun_path.
const maxState = 107 - len("/monitor.sock")

// defaults is what holds without a file at path.
func defaults(path string) *config {
	return &config{Root: "/var/lib/davit", State: defaultState, CDISpecDirs: cdi.Default(), Images: defaultImages(), sources: sources{file: path, Pull: defaultPull()}}
}

// readConfig reads the file at path over the defaults. A missing file is an
// error only if it was asked for.
func readConfig(path string, required bool) (*config, error) {
	c := defaults(path)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !required {
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	if err := c.parse(path, data); err != nil {
		return nil, err
	}
	return c, nil
}

// parse reads TOML. Each line of its errors begins with "file:line:column: key".
func (c *config) parse(path string, data []byte) error {
	file, err := settings.Read(path, data, c, unquoted)
	if err != nil {
		return err
	}
	c.text = file
	return file.Locate(c.check())
}

// unquoted explains what became of a host whose dots TOML took for its own.
func unquoted(key toml.Key) string {
	if len(key) > 2 && key[0] == "registries" && !strings.ContainsAny(key[1], ".:") {
		return `; a host with dots stands in quotes, as in [registries."docker.io"]`
	}
	return ""
}

// check says what is wrong with values, each by its key.
func (c *config) check() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, settings.Bad(key, format, args...))
	}
	absolute := func(key, path string) {
		if path != "" && !filepath.IsAbs(path) {
			bad(key, "%q is not an absolute path", path)
		}
	}
	oneOf := func(key, value string, allowed ...string) {
		if value != "" && !slices.Contains(allowed, value) {
			bad(key, "%q is not one of %s", value, strings.Join(allowed, ", "))
		}
	}
	c.checkSurface(bad, absolute)
	for key, path := range map[string]string{"root": c.Root, "state": c.State} {
		if absolute(key, path); path == "" {
			bad(key, "is empty; leave it out for the usual one")
		}
	}
	if state := filepath.Clean(c.State); c.Root != "" && filepath.Clean(c.Root) == state {
		key, other := "state", "root"
		if state == defaultState { // it need not be in the file
			key, other = other, key
		}
		bad(key, "%s is %s, too: one outlives a boot, the other does not", c.State, other)
	}
	if n := len(c.State); n > maxState {
		bad("state", "the path is %d bytes long; with %d at most, sockets fit in", n, maxState)
	}
	oneOf("log.level", strings.ToLower(string(c.Log.Level)), "debug", "info", "warn", "error")
	oneOf("log.format", c.Log.Format, "text", "json")
	oneOf("cgroup_driver", c.CgroupDriver, "auto", "systemd", "cgroupfs")
	if d := c.DefaultRuntime; d != "" && !handlerName(d) {
		bad("default_runtime", "%q is not a handler's name", d)
	}
	for handler, r := range c.Runtimes {
		if !handlerName(handler) {
			bad("runtimes."+handler, "a handler's name has small letters, digits and dashes only")
		}
		absolute("runtimes."+handler+".path", r.Path)
	}
	c.Images.check(bad, absolute)
	c.NRI.check(bad, absolute)
	c.Network.check(bad, absolute)
	c.Ulimits.Check(func(name, format string, args ...any) { bad("ulimits."+name, format, args...) })
	c.Streaming.check(bad, absolute)
	for _, dir := range c.CDISpecDirs {
		absolute("cdi_spec_dirs", dir)
	}
	c.sources.check(bad, absolute)
	return errors.Join(errs...)
}

func (n *networkConfig) check(bad func(key, format string, args ...any), absolute func(key, path string)) {
	absolute("network.cni_conf_dir", n.CNIConfDir)
	absolute("network.cni_conf_template", n.CNIConfTemplate)
	for _, dir := range n.CNIBinDirs {
		absolute("network.cni_bin_dirs", dir)
	}
	n.CNIDelPatience.check(bad, "network.cni_del_patience", 0, maxDuration)
	if n.MTU != 0 && (n.MTU < 576 || n.MTU > 65535) {
		bad("network.mtu", "%d is not from 576 to 65535", n.MTU)
	}
	// kernel: net/core/dev.c, dev_valid_name; a % is a place for a number.
	if len(n.Bridge) > 15 || n.Bridge == "." || n.Bridge == ".." || strings.ContainsAny(n.Bridge, "/:% \t\n\v\f\r") {
		bad("network.bridge", "%q is not an interface's name", n.Bridge)
	}
	if err := network.CheckSubnets(n.Subnets); err != nil {
		bad("network.subnets", "%w", err)
	}
}

// checkSurface is check's part about what is served where.
func (c *config) checkSurface(bad func(key, format string, args ...any), absolute func(key, path string)) {
	absolute("socket", c.Socket)
	absolute("image_socket", c.ImageSocket)
	absolute("cadvisor_socket", c.CadvisorSocket)
	same := func(a, b string) bool { return a != "" && filepath.Clean(a) == filepath.Clean(b) }
	if same(c.ImageSocket, c.socketPath()) {
		bad("image_socket", "%s is socket, which serves images already", c.ImageSocket)
	}
	if same(c.CadvisorSocket, c.socketPath()) || same(c.CadvisorSocket, c.ImageSocket) {
		bad("cadvisor_socket", "%s is one of davitd's other sockets", c.CadvisorSocket)
	}
	for i, v := range c.CRIVersions {
		if !slices.Contains(cri.Versions, v) {
			bad("cri_versions", "%q is not one of %v", v, cri.Versions)
		} else if slices.Contains(c.CRIVersions[:i], v) {
			bad("cri_versions", "%q stands there twice", v)
		}
	}
	if c.CRIVersions != nil && len(c.CRIVersions) == 0 {
		bad("cri_versions", "names no version; leave it out for all")
	}
}

// handlerName reports whether name is a DNS label, as RuntimeClass handlers are.
func handlerName(name string) bool {
	return name != "" && len(name) <= 63 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" &&
		name[0] != '-' && name[len(name)-1] != '-'
}

// socketPath is where davitd listens: beside other state unless told otherwise.
func (c *config) socketPath() string {
	if c.Socket != "" {
		return c.Socket
	}
	return filepath.Join(c.State, "davit.sock")
}

// A duration is written as in "1h30m"; empty is for whoever takes it to choose.
// It is no time.Duration, which go-toml would take a number for, of unknown unit.
type duration string

// maxDuration is for what may take any time.
const maxDuration = time.Duration(math.MaxInt64)

// value is 0 for what check refuses, too.
func (d duration) value() time.Duration {
	parsed, _ := time.ParseDuration(string(d))
	return parsed
}

// check takes nothing, 0 and what is from least to most.
func (d duration) check(bad func(key, format string, args ...any), key string, least, most time.Duration) {
	if d == "" {
		return
	}
	switch v, err := time.ParseDuration(string(d)); {
	case err != nil:
		bad(key, "%q is not a time such as 90s or 1h30m", string(d))
	case v < 0:
		bad(key, "%v is negative", v)
	case v != 0 && (v < least || v > most):
		bad(key, "%v is not from %v to %v", v, least, most)
	}
}

// A logLevel is the name of one of slog's levels; empty is info.
type logLevel string

func (l logLevel) value() slog.Level {
	var level slog.Level
	_ = level.UnmarshalText([]byte(l)) // check has seen to that
	return level
}
