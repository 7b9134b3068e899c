// Package ocispec turns a pod, a container and an image's configuration into
// an OCI runtime spec.
//
// Build is pure: values in, values out. What it needs of the host is read
// before: once by ProbeHost, for each container by Inspect and ResolveUser.
// Make is Build with Inspect around it, makes the working directory below the
// container's root, and loads the default AppArmor profile: nothing else here
// writes, starts or keeps anything.
// Package pod calls it.
//
// It never lets a container's annotations into the spec: crun and runc take
// orders from them (run.oci.*, org.systemd.property.*).
package ocispec
