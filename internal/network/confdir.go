package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/fsnotify/fsnotify"

	"github.com/davit-runtime/davit/internal/fault"
)

// A choice is what the CNI configuration folder says. Immutable.
type choice struct {
	list *libcni.NetworkConfigList // nil: the built-in bridge, unless err
	raw  json.RawMessage           // list whole, with plugins that stand in files of their own
	file string                    // name of the file chosen
	err  error                     // there are files, but none is valid: why not, each
}

// same reports whether nothing that matters differs.
func (c *choice) same(d *choice) bool {
	return c.file == d.file && bytes.Equal(c.raw, d.raw) && fmt.Sprint(c.err) == fmt.Sprint(d.err)
}

// choose picks the first valid configuration in lexical order of names.
func choose(dir string, pluginDirs []string) *choice {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return &choice{}
	}
	if err != nil {
		return &choice{err: fault.New(fault.Unavailable, "", "CNI configuration: %w", err)}
	}
	var rejected []string
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".conflist", ".conf", ".json":
		default:
			continue
		}
		path := filepath.Join(dir, e.Name())
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			continue
		}
		list, raw, err := load(path, pluginDirs)
		if err == nil {
			return &choice{list: list, raw: raw, file: e.Name()}
		}
		rejected = append(rejected, fmt.Sprintf("%s: %v", e.Name(), err))
	}
	if rejected == nil {
		return &choice{}
	}
	return &choice{err: fault.New(fault.Unavailable, "", "no valid CNI configuration in %s: %s", dir, strings.Join(rejected, "; "))}
}

// load reads one file and checks that davit can use it.
func load(path string, pluginDirs []string) (*libcni.NetworkConfigList, json.RawMessage, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	list, err := parse(data)
	if err != nil {
		return nil, nil, err
	}
	if !list.LoadOnlyInlinedPlugins {
		more, err := libcni.NetworkPluginConfsFromFiles(filepath.Dir(path), list.Name)
		if err != nil {
			return nil, nil, err
		}
		list.Plugins = append(list.Plugins, more...)
	}
	if err := usable(list); err != nil {
		return nil, nil, err
	}
	for _, p := range list.Plugins {
		if err := findPlugin(p.Network.Type, pluginDirs); err != nil {
			return nil, nil, err
		}
	}
	raw, err := whole(list)
	if err != nil {
		return nil, nil, err
	}
	return list, raw, nil
}

// parse reads a configuration list, or a single plugin's configuration, which
// becomes a list of one, whatever the file's name says it is.
func parse(data []byte) (*libcni.NetworkConfigList, error) {
	var kind struct {
		Plugins json.RawMessage `json:"plugins"`
		Type    string          `json:"type"`
	}
	if err := json.Unmarshal(data, &kind); err != nil {
		return nil, fmt.Errorf("not valid JSON: %w", err)
	}
	if kind.Plugins != nil || kind.Type == "" {
		return libcni.NetworkConfFromBytes(data)
	}
	single, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	list, err := libcni.ConfListFromConf(single)
	if err != nil {
		return nil, err
	}
	list.LoadOnlyInlinedPlugins = true
	return list, nil
}

// usable says what is wrong with a list, its plugins' presence aside.
func usable(list *libcni.NetworkConfigList) error {
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return fmt.Errorf("name %q: %s", list.Name, err.Msg)
	}
	if list.CNIVersion != "" {
		newer, err := version.GreaterThan(list.CNIVersion, version.Current())
		if err != nil {
			return fmt.Errorf("cniVersion %q: %w", list.CNIVersion, err)
		}
		if newer {
			return fmt.Errorf("cniVersion %s is newer than %s, the last that davit knows", list.CNIVersion, version.Current())
		}
	}
	if len(list.Plugins) == 0 {
		return errors.New("no plugins")
	}
	for _, p := range list.Plugins {
		if p == nil || p.Network == nil || p.Network.Type == "" {
			return errors.New("a plugin without a type")
		}
	}
	if len(list.Plugins) == 1 && list.Plugins[0].Network.Type == "loopback" {
		return errors.New("only the loopback interface, which davit brings up itself")
	}
	return nil
}

// whole returns the list as JSON that needs no other file.
func whole(list *libcni.NetworkConfigList) (json.RawMessage, error) {
	out := map[string]any{}
	if err := json.Unmarshal(list.Bytes, &out); err != nil {
		return nil, err
	}
	var inline []json.RawMessage
	for _, p := range list.Plugins {
		inline = append(inline, p.Bytes)
	}
	out["name"], out["cniVersion"], out["plugins"], out["loadOnlyInlinedPlugins"] = list.Name, list.CNIVersion, inline, true
	return json.Marshal(out)
}

const (
	pollInterval = 500 * time.Millisecond // for what inotify cannot see: symlinks elsewhere, plugins installed later
	settle       = 30 * time.Millisecond  // files are often written in several steps
)

// watch keeps n.choice up to date until ctx ends.
func (n *Network) watch(ctx context.Context) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		slog.WarnContext(ctx, "network: no inotify, only polling for CNI configuration", "error", err)
		w = &fsnotify.Watcher{} // its channels never deliver
	} else {
		defer w.Close()
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for watched := ""; ; {
		if dir := nearest(n.plugins.config.Load().confDir); err == nil && dir != watched {
			if watched != "" {
				_ = w.Remove(watched) // it may be gone
			}
			if watched = dir; w.Add(dir) != nil {
				watched = ""
			}
		}
		n.rescan(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case e := <-w.Events:
			if e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename) {
				watched = "" // perhaps the folder itself: watch it anew
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(settle):
			}
		case <-w.Errors:
		}
	}
}

// A cniConfig is what may change while a Network is open. Immutable.
type cniConfig struct {
	confDir     string
	pluginDirs  []string
	delPatience time.Duration
}

// SetCNI replaces ConfDir, PluginDirs and DelPatience of the Config; what is
// zero is as usual. The folder counts at once, plugins from their next call on,
// of pods that are connected, too.
func (n *Network) SetCNI(ctx context.Context, confDir string, pluginDirs []string, delPatience time.Duration) {
	c := Config{ConfDir: confDir, PluginDirs: pluginDirs, DelPatience: delPatience}
	setDefaults(&c)
	n.plugins.config.Store(&cniConfig{c.ConfDir, c.PluginDirs, c.DelPatience})
	n.rescan(ctx)
}

// rescan looks at the folder again.
func (n *Network) rescan(ctx context.Context) {
	from := n.plugins.config.Load()
	now := choose(from.confDir, from.pluginDirs)
	if now.same(n.choice.Load()) {
		return
	}
	n.choice.Store(now)
	switch {
	case now.err != nil:
		slog.WarnContext(ctx, "network: not ready", "error", now.err)
	case now.list != nil:
		slog.InfoContext(ctx, "network: CNI configuration", "file", now.file, "network", now.list.Name)
	default:
		slog.InfoContext(ctx, "network: no CNI configuration, built-in bridge", "folder", from.confDir)
	}
	select {
	case n.chosen <- struct{}{}:
	default: // it is told already
	}
}

// nearest returns dir, or its nearest parent that exists.
func nearest(dir string) string {
	for {
		if info, err := os.Stat(dir); err == nil && info.IsDir() || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}
