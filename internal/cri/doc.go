// Package cri is davit's gRPC surface, the Container Runtime Interface v1: it
// checks each request field by field, calls pod or image, and translates
// snapshots back.
//
// It owns nothing but the gRPC codes, which exist here only (codes.go), and
// the one log line of each call (intercept.go). It keeps no state, takes no
// lock and starts no process. cmd/davitd builds it; the kubelet calls it.
package cri
