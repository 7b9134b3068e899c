package main

import (
	"encoding/json"
	"io"
	"net/netip"
)

// print writes what is in force as JSON, for davit doctor and for people. What
// has no value is for davitd to find when it starts.
func (c *config) print(to io.Writer) error {
	runtimes := map[string]string{}
	for handler, r := range c.Runtimes {
		runtimes[handler] = r.Path
	}
	out := json.NewEncoder(to)
	out.SetIndent("", "  ")
	return out.Encode(struct {
		Root           string            `json:"root"`
		State          string            `json:"state"`
		Socket         string            `json:"socket"`
		ImageSocket    string            `json:"imageSocket,omitempty"`
		CadvisorSocket string            `json:"cadvisorSocket,omitempty"`
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
	}{
		c.Root, c.State, c.socketPath(), c.ImageSocket, c.CadvisorSocket, c.CgroupDriver, c.DefaultRuntime, runtimes,
		c.Network.CNIConfDir, c.Network.CNIBinDirs, c.Network.Bridge, c.Network.Subnets,
		c.Streaming.TLSCertFile, c.Streaming.TLSKeyFile, c.CDISpecDirs,
	})
}
