// Package settings reads TOML files strictly: what is wrong is told as
// "file:line:column: key: why", with the key that may have been meant, and two
// configurations are compared key by key. It knows no key: those are the toml
// tags of what it decodes into. It is pure; cmd/davitd calls it.
package settings
