package play

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// supportedFields lists what davit play carries out, or may leave out without
// changing what the pod does on one node. Lists are written [], and ".*"
// stands for everything below.
var supportedFields = fieldSet("", `
	apiVersion kind
	metadata.name metadata.namespace metadata.uid metadata.labels.* metadata.annotations.*
	spec.restartPolicy spec.terminationGracePeriodSeconds spec.runtimeClassName
	spec.hostNetwork spec.hostPID spec.hostIPC spec.shareProcessNamespace spec.hostUsers
	spec.hostname spec.subdomain spec.setHostnameAsFQDN spec.hostAliases[].* spec.dnsPolicy spec.dnsConfig.*
	spec.nodeName spec.schedulerName spec.enableServiceLinks spec.automountServiceAccountToken spec.os.name
	spec.securityContext.runAsUser spec.securityContext.runAsGroup spec.securityContext.runAsNonRoot
	spec.securityContext.fsGroup spec.securityContext.fsGroupChangePolicy
	spec.securityContext.supplementalGroups[] spec.securityContext.supplementalGroupsPolicy
	spec.securityContext.sysctls[].* spec.securityContext.seccompProfile.*
	spec.securityContext.appArmorProfile.* spec.securityContext.seLinuxOptions.*
	spec.volumes[].name spec.volumes[].emptyDir.medium spec.volumes[].emptyDir.sizeLimit
	spec.volumes[].hostPath.path spec.volumes[].hostPath.type
	spec.volumes[].image.reference spec.volumes[].image.pullPolicy
`, containerFields("spec.containers[]"), containerFields("spec.initContainers[]"),
	fieldSet("spec.initContainers[]", "restartPolicy"))

func containerFields(prefix string) map[string]bool {
	return fieldSet(prefix, `
	name image imagePullPolicy command[] args[] workingDir stdin stdinOnce tty ports[].*
	env[].name env[].value env[].valueFrom.fieldRef.* env[].valueFrom.resourceFieldRef.*
	resources.limits.cpu resources.limits.memory resources.requests.cpu resources.requests.memory
	resources.requests.ephemeral-storage
	volumeMounts[].name volumeMounts[].mountPath volumeMounts[].readOnly volumeMounts[].recursiveReadOnly
	volumeMounts[].subPath volumeMounts[].subPathExpr volumeMounts[].mountPropagation
	terminationMessagePath terminationMessagePolicy
	securityContext.runAsUser securityContext.runAsGroup securityContext.runAsNonRoot
	securityContext.capabilities.* securityContext.privileged securityContext.readOnlyRootFilesystem
	securityContext.allowPrivilegeEscalation securityContext.procMount securityContext.seccompProfile.*
	securityContext.appArmorProfile.* securityContext.seLinuxOptions.*`)
}

// reasons says why a field is not supported, by the last name in its path.
var reasons = map[string]string{
	"livenessProbe":    "probes need a kubelet; remove it, or check by davit exec",
	"readinessProbe":   "probes need a kubelet; remove it, or check by davit exec",
	"startupProbe":     "probes need a kubelet; remove it, or check by davit exec",
	"lifecycle":        "hooks need a kubelet",
	"envFrom":          "there is no API server to read a ConfigMap or Secret from; use env",
	"configMapKeyRef":  "there is no API server to read a ConfigMap from; use value",
	"secretKeyRef":     "there is no API server to read a Secret from; use value",
	"configMap":        "there is no API server to read it from; use hostPath",
	"secret":           "there is no API server to read it from; use hostPath",
	"projected":        "there is no API server to read it from; use hostPath",
	"imagePullSecrets": "there is no API server to read it from; pull first: davit pull --creds USER:PASSWORD IMAGE",

	"persistentVolumeClaim": "there is no storage provisioner; use hostPath",
	"serviceAccountName":    "there is no API server to give a token",
	"serviceAccount":        "there is no API server to give a token",
	"nodeSelector":          "there is no scheduler",
	"affinity":              "there is no scheduler",
	"tolerations":           "there is no scheduler",
	"priorityClassName":     "there is no scheduler",
	"ephemeral-storage":     "no part of the CRI limits it",
	"ephemeralContainers":   "use davit exec",
	"activeDeadlineSeconds": "a kubelet would have to watch it; use davit stop",
	"status":                "it is the cluster's to write; remove it",
	"managedFields":         "it is the cluster's to write; remove it",
	"resourceVersion":       "it is the cluster's to write; remove it",
	"creationTimestamp":     "it is the cluster's to write; remove it",
}

func fieldSet(prefix, fields string, more ...map[string]bool) map[string]bool {
	set := map[string]bool{}
	for _, f := range strings.Fields(fields) {
		set[join(prefix, f)] = true
	}
	for _, m := range more {
		maps.Copy(set, m)
	}
	return set
}

// unsupported returns a problem for each field that is set and not supported.
// Null and empty values are not set.
func unsupported(tree any) []Problem {
	var found []Problem
	walkFields(tree, "", "", &found)
	return found
}

// walkFields visits value, which is at path; pattern is path with every index
// left out. It reports the topmost field below which nothing is supported.
func walkFields(value any, path, pattern string, found *[]Problem) {
	if supportedFields[pattern] || supportedFields[pattern+".*"] || isEmpty(value) {
		return
	}
	if pattern != "" && !leadsToSupported(pattern) {
		*found = append(*found, Problem{Path: path, Text: "not supported by davit play" + reason(path)})
		return
	}
	switch v := value.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			walkFields(v[key], join(path, key), join(pattern, key), found)
		}
	case []any:
		for i, item := range v {
			walkFields(item, fmt.Sprintf("%s[%d]", path, i), pattern+"[]", found)
		}
	}
}

func leadsToSupported(pattern string) bool {
	for f := range supportedFields {
		if rest, ok := strings.CutPrefix(f, pattern); ok && (rest[0] == '.' || rest[0] == '[') {
			return true
		}
	}
	return false
}

func isEmpty(value any) bool {
	switch v := value.(type) {
	case nil:
		return true
	case map[string]any:
		for _, item := range v {
			if !isEmpty(item) {
				return false
			}
		}
		return true
	case []any:
		return len(v) == 0
	}
	return false
}

func reason(path string) string {
	if r := reasons[path[strings.LastIndex(path, ".")+1:]]; r != "" {
		return ": " + r
	}
	return ""
}
