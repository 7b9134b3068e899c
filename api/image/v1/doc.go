// Package imagev1 is davit's own gRPC service for images, which davitd serves
// on its sockets beside the CRI: pulls under way, archives, disk usage, checks
// and what the registries' configuration means. image.proto is its reference.
//
// Everything else in the package is made of that by make generate.
package imagev1
