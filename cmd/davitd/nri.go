package main

import (
	"log/slog"
	"path/filepath"
	"time"

	"github.com/davit-runtime/davit/internal/nri"
)

// defaultState is where davitd keeps what a boot ends.
const defaultState = "/run/davit"

// nriConfig is about plugins of the Node Resource Interface.
type nriConfig struct {
	Disable             bool            `toml:"disable"`
	Socket              string          `toml:"socket"`     // that plugins connect to
	PluginDir           string          `toml:"plugin_dir"` // of those started with davitd
	ConfigDir           string          `toml:"config_dir"` // their configuration
	RegistrationTimeout duration        `toml:"registration_timeout"`
	RequestTimeout      duration        `toml:"request_timeout"`
	Validator           validatorConfig `toml:"validator"`
}

// validatorConfig has the keys of containerd's default_validator.
type validatorConfig struct {
	Enable                    bool     `toml:"enable"`
	RejectHooks               bool     `toml:"reject_oci_hook_adjustment"`
	RejectRuntimeDefault      bool     `toml:"reject_runtime_default_seccomp_adjustment"`
	RejectUnconfined          bool     `toml:"reject_unconfined_seccomp_adjustment"`
	RejectCustom              bool     `toml:"reject_custom_seccomp_adjustment"`
	RejectNamespaces          bool     `toml:"reject_namespace_adjustment"`
	RejectSysctls             bool     `toml:"reject_sysctl_adjustment"`
	RequiredPlugins           []string `toml:"required_plugins"`
	TolerateMissingAnnotation string   `toml:"tolerate_missing_plugins_annotation"`
}

func (n nriConfig) check(bad func(key, format string, args ...any), absolute func(key, path string)) {
	absolute("nri.socket", n.Socket)
	absolute("nri.plugin_dir", n.PluginDir)
	absolute("nri.config_dir", n.ConfigDir)
	n.RegistrationTimeout.check(bad, "nri.registration_timeout", 0, time.Minute)
	n.RequestTimeout.check(bad, "nri.request_timeout", 0, time.Minute)
}

// nri is what plugins are started with. Where davitd's state is not in the usual
// place, the socket is not either, so that several can run side by side.
func (c *config) nri(log *slog.Logger) nri.Config {
	n := nri.Config{
		Socket: c.NRI.Socket, PluginDir: c.NRI.PluginDir, ConfigDir: c.NRI.ConfigDir,
		RegistrationTimeout: c.NRI.RegistrationTimeout.value(), RequestTimeout: c.NRI.RequestTimeout.value(),
		Version: version, Log: log,
	}
	if n.Socket == "" {
		n.Socket = nri.DefaultSocket
		if filepath.Clean(c.State) != defaultState {
			n.Socket = filepath.Join(c.State, "nri", "nri.sock")
		}
	}
	if v := c.NRI.Validator; v.Enable {
		n.Validator = &nri.Validator{
			Hooks: v.RejectHooks, RuntimeDefault: v.RejectRuntimeDefault, Unconfined: v.RejectUnconfined, Custom: v.RejectCustom,
			Namespaces: v.RejectNamespaces, Sysctls: v.RejectSysctls,
			Required: v.RequiredPlugins, TolerateMissing: v.TolerateMissingAnnotation,
		}
	}
	return n
}
