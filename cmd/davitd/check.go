package main

import (
	"cmp"
	"encoding/json"
	"io"
	"net/netip"
	"strings"

	"github.com/davit-runtime/davit/internal/cri"
	"github.com/davit-runtime/davit/internal/layer"
	"github.com/davit-runtime/davit/internal/ocispec"
)

// print writes what is in force as JSON, for davit doctor and for people. What
// has no value is for davitd to find when it starts.
func (c *config) print(to io.Writer) error {
	runtimes := map[string]string{}
	for handler, r := range c.Runtimes {
		runtimes[handler] = r.Path
	}
	endpoints := map[string][]string{}
	for host, r := range c.Registries {
		endpoints[host] = append([]string{}, r.Endpoints...)
	}
	versions := c.CRIVersions
	if len(versions) == 0 {
		versions = cri.Versions
	}
	var cadvisor *string // "" and nothing said are told apart
	if c.CadvisorSocket != "" || c.text.Has("cadvisor_socket") {
		cadvisor = &c.CadvisorSocket
	}
	out := json.NewEncoder(to)
	out.SetIndent("", "  ")
	return out.Encode(struct {
		Root           string            `json:"root"`
		State          string            `json:"state"`
		Socket         string            `json:"socket"`
		ImageSocket    string            `json:"imageSocket,omitempty"`
		CadvisorSocket *string           `json:"cadvisorSocket,omitempty"`
		CgroupDriver   string            `json:"cgroupDriver,omitempty"`
		DefaultRuntime string            `json:"defaultRuntime,omitempty"`
		Runtimes       map[string]string `json:"runtimes,omitempty"`
		CNIConfDir     string            `json:"cniConfDir,omitempty"`
		CNIBinDirs     []string          `json:"cniBinDirs,omitempty"`
		Bridge         string            `json:"bridge,omitempty"`
		Subnets        []netip.Prefix    `json:"subnets,omitempty"`
		CertFile       string            `json:"certFile,omitempty"`
		KeyFile        string            `json:"keyFile,omitempty"`
		CDISpecDirs    []string          `json:"cdiSpecDirs,omitempty"`

		CRIVersions      []cri.Version       `json:"criVersions"`
		LogLevel         string              `json:"logLevel"`
		LogFormat        string              `json:"logFormat"`
		StreamingAddress string              `json:"streamingAddress,omitempty"`
		Ulimits          ocispec.Ulimits     `json:"ulimits,omitempty"`
		ImageStore       layer.Kind          `json:"imageStore,omitempty"`
		PinnedImages     []string            `json:"pinnedImages,omitempty"`
		VerifierDir      string              `json:"verifierDir,omitempty"`
		Registries       map[string][]string `json:"registries,omitempty"` // endpoints by host
		HostsDirs        []string            `json:"hostsDirs,omitempty"`
		RegistriesConf   string              `json:"registriesConf,omitempty"`
	}{
		c.Root, c.State, c.socketPath(), c.ImageSocket, cadvisor, c.CgroupDriver, c.DefaultRuntime, runtimes,
		c.Network.CNIConfDir, c.Network.CNIBinDirs, c.Network.Bridge, c.Network.Subnets,
		c.Streaming.TLSCertFile, c.Streaming.TLSKeyFile, c.CDISpecDirs,
		versions, strings.ToLower(c.Log.Level.value().String()), cmp.Or(c.Log.Format, "text"), c.Streaming.Address, c.Ulimits,
		c.Images.Store, c.Images.Pinned, c.Images.Verifiers.Dir, endpoints, c.Pull.HostsDirs, c.Pull.RegistriesConf,
	})
}
