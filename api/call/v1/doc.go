// Package callv1 is davit's own gRPC service that tells why a pod or container
// is as it is: calls of the CRI that failed, were slow or are under way, step by
// step. call.proto is its reference.
//
// Everything else in the package is made of that by make generate.
package callv1
