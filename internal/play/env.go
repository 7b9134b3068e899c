package play

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// environment returns the variables of a container, in order, each value
// expanded by those before it, and the same as a map.
//
// Source: Kubernetes, pkg/kubelet/kubelet_pods.go, makeEnvironmentVariables.
func environment(pod *corev1.Pod, c *corev1.Container, node Node, podIPs []string) ([]*runtimeapi.KeyValue, map[string]string, error) {
	known := map[string]string{}
	var order []string
	for _, e := range c.Env {
		value := expand(e.Value, known)
		var err error
		if from := e.ValueFrom; from != nil && from.FieldRef != nil {
			value, err = fieldValue(pod, node, podIPs, from.FieldRef.FieldPath)
		} else if from != nil && from.ResourceFieldRef != nil {
			value, err = resourceValue(&pod.Spec, c, node, from.ResourceFieldRef)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("variable %s: %w", e.Name, err)
		}
		if _, again := known[e.Name]; !again {
			order = append(order, e.Name)
		}
		known[e.Name] = value
	}
	var envs []*runtimeapi.KeyValue
	for _, name := range order {
		envs = append(envs, &runtimeapi.KeyValue{Key: name, Value: []byte(known[name])})
	}
	return envs, known, nil
}

// fieldValue returns what a fieldRef refers to.
//
// Source: Kubernetes, Pod v1, EnvVarSource.fieldRef.
func fieldValue(pod *corev1.Pod, node Node, podIPs []string, path string) (string, error) {
	if base, key, ok := subscript(path); ok {
		switch base {
		case "metadata.labels":
			return pod.Labels[key], nil
		case "metadata.annotations":
			return pod.Annotations[key], nil
		}
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "spec.nodeName":
		return node.Name, nil
	case "spec.serviceAccountName":
		return "default", nil
	case "status.podIP":
		return strings.Join(podIPs[:min(len(podIPs), 1)], ""), nil
	case "status.podIPs":
		return strings.Join(podIPs, ","), nil
	case "status.hostIP":
		return node.IP, nil
	case "status.hostIPs":
		return node.IP, nil
	}
	return "", fmt.Errorf("%q is no field that a variable can have; there are metadata.{name,namespace,uid,labels['…'],annotations['…']}, "+
		"spec.{nodeName,serviceAccountName} and status.{podIP,podIPs,hostIP,hostIPs}", path)
}

// subscript takes metadata.labels['key'] apart.
func subscript(path string) (base, key string, ok bool) {
	base, rest, ok := strings.Cut(path, "['")
	if !ok {
		return "", "", false
	}
	key, ok = strings.CutSuffix(rest, "']")
	return base, key, ok && key != ""
}

// resourceValue returns what a resourceFieldRef refers to, in units of its
// divisor, rounded up. An absent limit counts as all that the node has.
//
// Source: Kubernetes, pkg/api/v1/resource, ExtractContainerResourceValue.
func resourceValue(s *corev1.PodSpec, c *corev1.Container, node Node, ref *corev1.ResourceFieldSelector) (string, error) {
	if ref.ContainerName != "" && ref.ContainerName != c.Name {
		c = nil
		for other := range eachContainer(s) {
			if other.Name == ref.ContainerName {
				c = other
			}
		}
		if c == nil {
			return "", fmt.Errorf("there is no container %q", ref.ContainerName)
		}
	}
	which, name, _ := strings.Cut(ref.Resource, ".")
	list := c.Resources.Limits
	if which == "requests" {
		list = c.Resources.Requests
	}
	all := map[string]*resource.Quantity{
		"cpu":    resource.NewQuantity(node.CPUs, resource.DecimalSI),
		"memory": resource.NewQuantity(node.MemoryBytes, resource.BinarySI),
	}
	if all[name] == nil || (which != "limits" && which != "requests") {
		return "", fmt.Errorf("%q is not one of limits.cpu, limits.memory, requests.cpu, requests.memory", ref.Resource)
	}
	q, given := list[corev1.ResourceName(name)]
	if !given && which == "limits" {
		q = *all[name]
	}
	value, unit := q.Value(), ref.Divisor.Value()
	if name == "cpu" {
		value, unit = q.MilliValue(), ref.Divisor.MilliValue()
		if ref.Divisor.IsZero() {
			unit = 1000
		}
	}
	unit = max(unit, 1)
	return strconv.FormatInt((value+unit-1)/unit, 10), nil
}

// expand replaces each $(NAME) by its value; $$ stands for one $, and a name
// that is not known stays as it is written.
//
// Source: Kubernetes, Pod v1, Container.command: "Variable references
// $(VAR_NAME) are expanded".
func expand(s string, values map[string]string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, "$")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		name, rest, closed := strings.Cut(after, ")")
		switch {
		case strings.HasPrefix(after, "$"):
			b.WriteByte('$')
			s = after[1:]
		case closed && strings.HasPrefix(name, "("):
			value, ok := values[name[1:]]
			if !ok {
				value = "$" + name + ")"
			}
			b.WriteString(value)
			s = rest
		default: // a lone $, which also keeps the character after it
			b.WriteByte('$')
			s = after
		}
	}
}

func expandAll(list []string, values map[string]string) []string {
	var out []string
	for _, s := range list {
		out = append(out, expand(s, values))
	}
	return out
}

// unresolved returns the names in s that are not among values.
func unresolved(s string, values map[string]string) []string {
	missing := map[string]bool{}
	rest := strings.ReplaceAll(s, "$$", "")
	for {
		_, after, found := strings.Cut(rest, "$(")
		name, tail, closed := strings.Cut(after, ")")
		if !found || !closed {
			return slices.Sorted(maps.Keys(missing))
		}
		if _, ok := values[name]; !ok {
			missing[name] = true
		}
		rest = tail
	}
}
