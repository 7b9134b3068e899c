package cgroup

import (
	"path"
	"slices"
	"strings"
)

// ownParent is where containers go whose pod names no parent, without the
// suffix that systemd wants.
const ownParent = "/davit"

// scopePrefix stands before a container's ID in the name of its scope; the
// kubelet takes what follows the last dash for the ID.
const scopePrefix = "davit"

// Place names the cgroup of a container or holder below parent. With systemd,
// parent is taken in both syntaxes: "/kubepods/burstable/podX" and
// "kubepods-burstable-podX.slice". An empty one means davit's own.
func (h *Host) Place(parent, id string) Place {
	p := Place{Parent: path.Join("/", parent), ID: id}
	if parent == "" || p.Parent == "/" {
		p.Parent = ownParent
	}
	var relative string
	if h.driver == Systemd {
		slice := sliceOf(p.Parent)
		p.Path = slice + ":" + scopePrefix + ":" + id
		relative = path.Join(slicePath(slice), scopeOf(id))
	} else {
		if strings.HasSuffix(p.Parent, ".slice") {
			h.warnParent.Do(func() {
				h.log.Warn("cgroup_parent is a systemd slice, but davit uses the cgroupfs driver: make kubelet and davit agree",
					"cgroup_parent", parent)
			})
		}
		relative = path.Join(p.Parent, id)
		p.Path = relative
	}
	p.Dirs = make([]string, 0, len(h.trees))
	for _, t := range h.trees {
		dir := t.mount + relative // both are clean: Place is called often
		p.Dirs = append(p.Dirs, dir)
		switch {
		case t.unified && h.layout == V2:
			p.OOMEvents = dir + "/memory.events"
		case slices.Contains(t.controllers, "memory"):
			p.OOMEvents = dir + "/memory.oom_control"
		}
	}
	return p
}

func scopeOf(id string) string { return scopePrefix + "-" + id + ".scope" }

// sliceOf returns the systemd slice of a parent. Dashes inside a name become
// underscores, as the kubelet has it, for a dash means a level.
func sliceOf(parent string) string {
	if base := path.Base(parent); strings.HasSuffix(base, ".slice") {
		return base
	}
	names := strings.Split(strings.Trim(parent, "/"), "/")
	for i, n := range names {
		names[i] = strings.ReplaceAll(n, "-", "_")
	}
	return strings.Join(names, "-") + ".slice"
}

// slicePath returns where systemd puts a slice: "a-b.slice" in "/a.slice/a-b.slice".
// systemd: systemd.slice(5).
func slicePath(slice string) string {
	name := strings.TrimSuffix(slice, ".slice")
	if name == "-" {
		return "/"
	}
	at, prefix := "/", ""
	for n := range strings.SplitSeq(name, "-") {
		at = path.Join(at, prefix+n+".slice")
		prefix += n + "-"
	}
	return at
}

// dirOf returns the directory of p in the hierarchy that has the controller,
// or false if none has.
func (h *Host) dirOf(p Place, controller string) (string, bool) {
	for _, t := range h.trees {
		if t.unified == (h.layout == V2) && (t.unified || slices.Contains(t.controllers, controller)) {
			for _, d := range p.Dirs {
				if strings.HasPrefix(d, t.mount+"/") {
					return d, true
				}
			}
		}
	}
	return "", false
}
