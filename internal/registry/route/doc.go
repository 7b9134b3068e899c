// Package route says where an image's content is asked for: it reads
// containerd's certs.d/HOST/hosts.toml, containers/image's registries.conf and
// registries.conf.d, and the table [registries] of davitd's own file, and turns
// an image's name into endpoints in order.
//
// It reads the files anew for each question, so that an edit counts for the
// next pull. It makes no connection, writes nothing, and never gives the value
// of a header away as something to show. Package registry calls it.
//
// What counts, for one registry, is the first of these that says anything:
//
//  1. [registries."HOST"] of davitd, if it has endpoints
//  2. hosts.toml, or certificates, in a directory of HOST's own
//  3. the table of registries.conf with the longest prefix that fits
//  4. hosts.toml of the directory "_default"
//  5. the registry itself
//
// "blocked" of registries.conf holds whatever else says so.
//
// Errors: fault.Precondition for a file that cannot be used, with the file and
// the line at the beginning, and for a short name that the files refuse; Invalid
// for what is no reference.
package route
