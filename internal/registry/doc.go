// Package registry speaks the OCI distribution API: manifests and blobs, from
// a registry or its mirrors, anonymously or with the caller's credentials.
//
// It owns connections, tokens, retries and the verification of what it
// fetched: bytes that do not match their digest never reach the caller as a
// success. It keeps nothing on disk, and no credentials or tokens beyond one
// Repository value. Which endpoints there are package route knows. Package image
// calls it.
//
// A blob is a stream: what package image reads is verified at its end, and a
// broken connection is replaced on the way. Of large blobs pieces are fetched
// ahead while the network is what is waited for.
//
// Errors: fault.Unknown with a text that begins "RegistryUnavailable: " if the
// registry cannot be reached or is out of order (the kubelet looks for that
// prefix, so nothing may be put before it), Denied for refused credentials,
// NotFound for what the registry does not have, Precondition for what the files
// forbid and for files that cannot be used.
package registry
