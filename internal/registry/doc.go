// Package registry speaks the OCI distribution API: manifests and blobs, from
// a registry or its mirrors, anonymously or with the caller's credentials.
//
// It owns connections, tokens, retries and the verification of what it
// fetched: bytes that do not match their digest never reach the caller as a
// success. It keeps nothing on disk, and no credentials or tokens beyond one
// Repository value. Package image calls it.
//
// Errors: fault.Unknown with a text that begins "RegistryUnavailable: " if the
// registry cannot be reached or is out of order (the kubelet looks for that
// prefix, so nothing may be put before it), Denied for refused credentials,
// NotFound for what the registry does not have.
package registry
