package cri

import (
	"encoding/json"
	"maps"
	"runtime"
	"slices"

	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/pod"
)

// Verbose information is one JSON object under "info", with the names that
// crictl's users know from other runtimes.

func info(fields map[string]any) map[string]string {
	return map[string]string{"info": asJSON(fields)}
}

// asJSON never fails: what cannot be shown is told in its place.
func asJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		data, _ = json.Marshal(map[string]string{"error": err.Error()})
	}
	return string(data)
}

// statusInfo is Status's verbose information: what is configured, and what
// there is now.
func (s *service) statusInfo() map[string]string {
	pods, containers := s.Views.States()
	return map[string]string{
		"config": asJSON(s.config.Info),
		"golang": asJSON(runtime.Version()),
		"davit": asJSON(map[string]any{
			"version":    s.config.Version,
			"pods":       pods,
			"containers": containers,
			"images":     len(s.Images.List()),
			"events":     map[string]any{"readers": s.readers.now.Load(), "lost": s.readers.lost.Load()},
		}),
	}
}

func podInfo(p *pod.Snapshot) map[string]string {
	type namespace struct {
		Type string `json:"type"`
		Path string `json:"path"`
	}
	namespaces := []namespace{}
	for _, kind := range slices.Sorted(maps.Keys(p.Paths)) {
		ociType := kind
		if kind == "net" {
			ociType = "network"
		}
		namespaces = append(namespaces, namespace{ociType, p.Paths[kind]})
	}
	fields := map[string]any{
		"pid":            p.HolderPid,
		"config":         p.Config,
		"runtimeHandler": p.Handler,
		"runtimeSpec":    map[string]any{"linux": map[string]any{"namespaces": namespaces}},
		"resources":      p.Config.GetLinux().GetResources(),
		"overhead":       p.Config.GetLinux().GetOverhead(),
		"networkDriver":  p.Network.Driver,
		"held":           p.Held,
	}
	if len(p.Network.Raw) > 0 {
		fields["cniResult"] = p.Network.Raw
	}
	return info(fields)
}

func (s *service) containerInfo(c *pod.ContainerSnapshot) map[string]string {
	fields := map[string]any{
		"pid":         c.Pid,
		"sandboxID":   c.PodID,
		"config":      c.Config,
		"runtimeType": c.Handler,
		"held":        c.Held,
	}
	spec, err := s.config.Spec(c.ID)
	switch {
	case err != nil:
		fields["runtimeSpecError"] = err.Error()
	case json.Valid(spec):
		fields["runtimeSpec"] = json.RawMessage(spec)
	}
	return info(fields)
}

func imageInfo(i image.Image) map[string]string {
	if i.Artifact != "" {
		return info(map[string]any{"artifactType": i.Artifact, "pulledAt": i.PulledAt})
	}
	return info(map[string]any{"imageSpec": i.Config, "pulledAt": i.PulledAt})
}
