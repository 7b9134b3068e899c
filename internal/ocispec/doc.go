// Package ocispec turns a pod, a container and an image's configuration into
// an OCI runtime spec.
//
// Build is pure: values in, values out. What it needs of the host is read
// before: once by ProbeHost, and for each container by Inspect and ResolveUser.
// It starts nothing, changes nothing and keeps nothing; MakeWorkingDir is the
// one function that writes, below a container's own root. Package pod calls it.
//
// It never lets a container's annotations into the spec: crun and runc take
// orders from them (run.oci.*, org.systemd.property.*).
package ocispec
