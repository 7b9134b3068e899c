// Package metrics makes the CRI's metrics of figures: the names, labels and
// units that cAdvisor made known, so that dashboards and alerts go on working.
//
// A value in the CRI is a whole number, so that metrics in seconds are cut to
// whole seconds. What the kernel does not tell is left out, never made up; what
// this host's kernel cannot tell at all is not among the descriptors. Pure;
// package cri calls it.
package metrics

import (
	"slices"
	"strconv"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/namespace"
	"github.com/davit-runtime/davit/internal/stats"
)

// A Host is what of the descriptors depends on the kernel. It stays the same
// until the next boot.
type Host struct {
	CgroupV2  bool
	Scheduled bool // cgroup.Host.HasScheduled
}

// A Table is the metrics that there are on a host. Immutable.
type Table struct {
	ofContainers []metric
	ofInterfaces []interfaceMetric
	descriptors  []*runtimeapi.MetricDescriptor
}

// base are the labels that all metrics have, before their own. As with
// cAdvisor, id is the path of the cgroup, and name the container's ID.
var base = []string{"container", "id", "image", "name", "namespace", "pod"}

// A metric of containers calls emit once for each sample, with the values of
// its own labels, in order.
type metric struct {
	name, help string
	kind       runtimeapi.MetricType
	labels     []string
	get        func(c *stats.Container, emit emit)
}

type emit func(value uint64, own ...string)

// An interfaceMetric is of a pod's network interface, its own label.
type interfaceMetric struct {
	name, help string
	get        func(namespace.Interface) uint64
}

const (
	counter = runtimeapi.MetricType_COUNTER
	gauge   = runtimeapi.MetricType_GAUGE
)

// New returns the table for a host.
func New(h Host) *Table {
	t := &Table{ofInterfaces: ofInterfaces, ofContainers: slices.Concat(ofCPU, ofMemory, ofPressure, ofDisks, ofProcesses, ofSpec)}
	if h.CgroupV2 {
		t.ofContainers = append(t.ofContainers, ofV2...)
	}
	if h.Scheduled {
		t.ofContainers = append(t.ofContainers, ofScheduled...)
	}
	for _, m := range t.ofContainers {
		t.describe(m.name, m.help, m.labels...)
	}
	for _, m := range t.ofInterfaces {
		t.describe(m.name, m.help, "interface")
	}
	return t
}

func (t *Table) describe(name, help string, own ...string) {
	t.descriptors = append(t.descriptors, &runtimeapi.MetricDescriptor{
		Name: name, Help: help, LabelKeys: slices.Concat(base, own),
	})
}

// Descriptors returns what there is, the same each time. The caller must not
// change it.
func (t *Table) Descriptors() []*runtimeapi.MetricDescriptor { return t.descriptors }

// Of returns a pod's metrics; p is from stats.Details. Those of the network are
// the pod's, as container "POD".
func (t *Table) Of(p *stats.Pod) *runtimeapi.PodSandboxMetrics {
	all := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.ID}
	meta := p.Config.GetMetadata()
	labels := []string{"POD", p.Cgroup, "", p.ID, meta.GetNamespace(), meta.GetName()}
	for _, in := range p.Interfaces {
		own := slices.Concat(labels, []string{in.Name})
		for _, m := range t.ofInterfaces {
			all.Metrics = append(all.Metrics, sample(m.name, counter, m.get(in), own))
		}
	}
	for _, c := range p.Containers {
		if c.Detail == nil {
			continue
		}
		image := c.Config.GetImage()
		name := image.GetUserSpecifiedImage()
		if name == "" {
			name = image.GetImage()
		}
		labels := []string{c.Config.GetMetadata().GetName(), c.Cgroup, name, c.ID, meta.GetNamespace(), meta.GetName()}
		all.ContainerMetrics = append(all.ContainerMetrics, &runtimeapi.ContainerMetrics{ContainerId: c.ID, Metrics: t.of(c, labels)})
	}
	return all
}

func (t *Table) of(c *stats.Container, labels []string) []*runtimeapi.Metric {
	all := make([]*runtimeapi.Metric, 0, 2*len(t.ofContainers))
	for _, m := range t.ofContainers {
		m.get(c, func(value uint64, own ...string) {
			values := labels
			if len(own) > 0 {
				values = slices.Concat(labels, own)
			}
			one := sample(m.name, m.kind, value, values)
			if m.name == fsUsage {
				one.Timestamp = c.Layer.At.UnixNano() // not live
			}
			all = append(all, one)
		})
	}
	return all
}

// sample is of a live figure: its timestamp is 0.
func sample(name string, kind runtimeapi.MetricType, value uint64, labels []string) *runtimeapi.Metric {
	return &runtimeapi.Metric{Name: name, MetricType: kind, LabelValues: labels, Value: &runtimeapi.UInt64Value{Value: value}}
}

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }

var ofInterfaces = []interfaceMetric{
	{"container_network_receive_bytes_total", "Bytes received.", func(i namespace.Interface) uint64 { return i.Rx.Bytes }},
	{"container_network_receive_errors_total", "Errors while receiving.", func(i namespace.Interface) uint64 { return i.Rx.Errors }},
	{"container_network_receive_packets_dropped_total", "Packets dropped while receiving.", func(i namespace.Interface) uint64 { return i.Rx.Dropped }},
	{"container_network_receive_packets_total", "Packets received.", func(i namespace.Interface) uint64 { return i.Rx.Packets }},
	{"container_network_transmit_bytes_total", "Bytes sent.", func(i namespace.Interface) uint64 { return i.Tx.Bytes }},
	{"container_network_transmit_errors_total", "Errors while sending.", func(i namespace.Interface) uint64 { return i.Tx.Errors }},
	{"container_network_transmit_packets_dropped_total", "Packets dropped while sending.", func(i namespace.Interface) uint64 { return i.Tx.Dropped }},
	{"container_network_transmit_packets_total", "Packets sent.", func(i namespace.Interface) uint64 { return i.Tx.Packets }},
}
