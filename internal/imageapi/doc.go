// Package imageapi serves davit's own gRPC service, api/image/v1, beside the
// CRI. It translates and streams, and nothing else: what is asked is done by
// the image store, the archives and the registries' client.
//
// Errors become codes where those of the CRI do. No stream holds more of an
// archive in memory than a few pieces.
package imageapi
