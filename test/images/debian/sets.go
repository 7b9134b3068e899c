// Package debian makes a large image of Debian's packages: what a real image
// is like, and the same for everybody on the same release.
package debian

// sets are the packages that each layer adds, with what they depend on.
var sets = [][]string{
	{
		"base-files", "base-passwd", "bash", "coreutils", "dash", "debianutils", "diffutils", "dpkg", "findutils", "grep",
		"gzip", "hostname", "libc-bin", "login", "mount", "ncurses-base", "ncurses-bin", "perl-base", "sed", "sysvinit-utils",
		"tar", "util-linux", "adduser", "apt", "ca-certificates", "curl", "iputils-ping",
	},
	{"python3", "python3-requests"},
	{"python3-numpy", "python3-pandas", "python3-scipy", "python3-sympy"},
	{"gcc", "g++", "make", "git"},
	{"golang-go"},
	{"libboost-dev", "linux-headers-cloud-amd64", "nodejs", "ruby", "perl"},
}

// smallSets are for trying a program that uses the image.
var smallSets = [][]string{
	{"base-files", "bash", "coreutils", "dash", "libc-bin", "grep", "sed", "perl-base", "iputils-ping"},
	{"python3"},
	{"curl"}, {"make"}, {"ca-certificates"}, {"perl"},
}

// Command is what shows that the image works, and how fast it starts: it loads
// some thousand files. It tells in a line, by names, what is not the disk's in
// that: seconds of its own computing; and how often it waited.
var Command = []string{"/usr/bin/python3", "-c", `
try:
    import numpy, pandas, scipy.linalg, requests
except ModuleNotFoundError: # the small image
    import json, asyncio, http.client, xml.dom.minidom, sqlite3
import resource
r = resource.getrusage(resource.RUSAGE_SELF)
print("computed", r.ru_utime, "waited", r.ru_nvcsw)`}
