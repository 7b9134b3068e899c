package play

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/store"
)

// stubResolver is systemd-resolved's address, which no pod can reach; the
// servers behind it are in resolvedConf.
const (
	resolvConf   = "/etc/resolv.conf"
	resolvedConf = "/run/systemd/resolve/resolv.conf"
	stubResolver = "127.0.0.53"
)

const (
	hostsPath   = "/etc/hosts"
	hostsHeader = "# Kubernetes-managed hosts file"
)

// hostDNS reads the host's resolver configuration; empty if it has none.
func hostDNS() (*runtimeapi.DNSConfig, error) {
	conf, err := readResolvConf(resolvConf)
	if err != nil || !slices.Equal(conf.Servers, []string{stubResolver}) {
		return conf, err
	}
	if real, err := readResolvConf(resolvedConf); err == nil && len(real.Servers) > 0 {
		return real, nil
	}
	return conf, nil
}

func readResolvConf(path string) (*runtimeapi.DNSConfig, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return parseResolvConf(data), nil
}

// parseResolvConf reads what man 5 resolv.conf describes; the last search or
// domain line counts.
func parseResolvConf(data []byte) *runtimeapi.DNSConfig {
	conf := &runtimeapi.DNSConfig{}
	for line := range bytes.Lines(data) {
		f := strings.Fields(string(line))
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			conf.Servers = append(conf.Servers, f[1])
		case "search", "domain":
			conf.Searches = f[1:]
		case "options":
			conf.Options = append(conf.Options, f[1:]...)
		}
	}
	return conf
}

// dnsConfig is the host's resolver configuration (dnsPolicy None: nothing)
// with the manifest's dnsConfig added. There being no cluster, ClusterFirst
// means the host's.
//
// Source: Kubernetes, pkg/kubelet/network/dns, appendDNSConfig.
func dnsConfig(s *corev1.PodSpec, host *runtimeapi.DNSConfig) *runtimeapi.DNSConfig {
	out := &runtimeapi.DNSConfig{}
	if s.DNSPolicy != corev1.DNSNone {
		out.Servers = slices.Clone(host.Servers)
		out.Searches = slices.Clone(host.Searches)
		out.Options = slices.Clone(host.Options)
	}
	if s.DNSConfig == nil {
		return out
	}
	out.Servers = appendNew(out.Servers, s.DNSConfig.Nameservers)
	out.Searches = appendNew(out.Searches, s.DNSConfig.Searches)
	for _, o := range s.DNSConfig.Options {
		out.Options = slices.DeleteFunc(out.Options, func(have string) bool {
			name, _, _ := strings.Cut(have, ":")
			return name == o.Name
		})
		option := o.Name
		if o.Value != nil && *o.Value != "" {
			option += ":" + *o.Value
		}
		out.Options = append(out.Options, option)
	}
	return out
}

func appendNew(list, more []string) []string {
	for _, s := range more {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

// writeHosts makes the pod's /etc/hosts.
func (f Files) writeHosts(pod *corev1.Pod, podIPs []string) error {
	var text string
	if pod.Spec.HostNetwork {
		host, err := os.ReadFile(hostsPath)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		text = hostsHeader + " (host network).\n" + string(host)
	} else {
		text = podHosts(pod, podIPs)
	}
	return store.WriteFile(f.hosts(), []byte(text+hostAliases(pod.Spec.HostAliases)), 0o644)
}

// podHosts names loopback and the pod itself.
//
// Source: Kubernetes, pkg/kubelet/kubelet_pods.go, managedHostsFileContent.
func podHosts(pod *corev1.Pod, podIPs []string) string {
	var b strings.Builder
	b.WriteString(hostsHeader + ".\n" +
		"127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\n" +
		"fe00::0\tip6-mcastprefix\n" +
		"fe00::1\tip6-allnodes\n" +
		"fe00::2\tip6-allrouters\n")
	for _, ip := range podIPs {
		b.WriteString(ip + "\t")
		if d := domain(pod); d != "" {
			b.WriteString(hostname(pod) + "." + d + "\t")
		}
		b.WriteString(hostname(pod) + "\n")
	}
	return b.String()
}

func hostAliases(aliases []corev1.HostAlias) string {
	if len(aliases) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\n# Entries added by HostAliases.\n")
	for _, a := range aliases {
		fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
	}
	return b.String()
}
