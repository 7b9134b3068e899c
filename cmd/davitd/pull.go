package main

import (
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/davit-runtime/davit/internal/registry"
	"github.com/davit-runtime/davit/internal/registry/route"
)

// sources is where images come from.
type sources struct {
	file string // of the configuration; empty if there is none

	Registries map[string]route.Host `toml:"registries"` // by host, as images name it; read again for each pull
	Pull       pullConfig            `toml:"pull"`
}

// pullConfig is how images are fetched.
type pullConfig struct {
	HostsDirs      []string `toml:"hosts_dirs"`      // as containerd's certs.d
	RegistriesConf string   `toml:"registries_conf"` // as containers/image's
	Stall          duration `toml:"stall"`
	MinRate        int64    `toml:"min_rate"` // bytes a second
	Parallel       int      `toml:"parallel"` // layers from one host at a time
	Ahead          int      `toml:"ahead"`    // pieces of large layers at a time, for all together
}

// defaultPull reads what containerd and CRI-O read.
func defaultPull() pullConfig {
	return pullConfig{
		HostsDirs: []string{"/etc/containerd/certs.d", "/etc/docker/certs.d"}, RegistriesConf: "/etc/containers/registries.conf",
		Stall: "1m", MinRate: 2 << 10, Parallel: 3, Ahead: 4,
	}
}

func (s *sources) check(bad func(key, format string, args ...any), absolute func(key, path string)) {
	for _, dir := range s.Pull.HostsDirs {
		absolute("pull.hosts_dirs", dir)
	}
	absolute("pull.registries_conf", s.Pull.RegistriesConf)
	s.Pull.Stall.check(bad, "pull.stall", time.Second, time.Hour)
	for key, n := range map[string]int64{"pull.min_rate": s.Pull.MinRate, "pull.parallel": int64(s.Pull.Parallel), "pull.ahead": int64(s.Pull.Ahead)} {
		if n < 0 {
			bad(key, "is negative")
		} else if n > 64 && key != "pull.min_rate" {
			bad(key, "%d is more than 64", n)
		}
	}
	for host, r := range s.Registries {
		if strings.Contains(host, "/") {
			bad("registries."+host, "want a host as it stands in images' names: docker.io, registry.example:5000")
		}
		absolute("registries."+host+".ca_file", r.CAFile)
		for _, e := range r.Endpoints {
			if !strings.Contains(e, "://") {
				e = "https://" + e
			}
			if u, err := url.Parse(e); err != nil || u.Host == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
				if strings.Contains(e, "@") {
					e = "(not shown)" // a password may be in it
				}
				bad("registries."+host+".endpoints", "%q is not as https://mirror.example/path or mirror.example:5000", e)
			}
		}
	}
}

// registry is what the image store is told of registries.
func (s *sources) registry() registry.Config {
	p := s.Pull
	c := registry.Config{
		Route: route.Config{File: s.file, Hosts: s.Registries, HostsDirs: p.HostsDirs, Conf: p.RegistriesConf},
		Stall: p.Stall.value(), MinRate: p.MinRate, Parallel: p.Parallel, Ahead: p.Ahead, UserAgent: "davit/" + version,
	}
	if p.Ahead == 0 {
		c.Ahead = -1 // none
	}
	if p.RegistriesConf != "" {
		c.Route.CertDirs = []string{filepath.Join(filepath.Dir(p.RegistriesConf), "certs.d")}
	}
	return c
}
