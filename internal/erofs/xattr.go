package erofs

import (
	"archive/tar"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/davit-runtime/davit/internal/fault"
)

const (
	xattrHeader = 12 // before an inode's attributes
	maxValue    = 1<<16 - 1

	// maxInline is how many bytes of attributes an inode has behind it. All
	// others are in the shared area, once for all that have the same.
	maxInline = 1024
	maxShared = 255 // of one inode
)

// maxSharedBytes bounds the shared area, which is kept in memory.
const maxSharedBytes = 16 << 20

const (
	paxXattr   = "SCHILY.xattr."
	opaqueAttr = "overlay.opaque" // of trusted

	indexUser       = 1
	indexAccessACL  = 2
	indexDefaultACL = 3
	indexTrusted    = 4
	indexSecurity   = 6
)

// prefixes of attributes' names, by index (kernel: erofs_fs.h,
// EROFS_XATTR_INDEX_…).
var prefixes = [...]string{
	indexUser:       "user.",
	indexAccessACL:  "system.posix_acl_access",
	indexDefaultACL: "system.posix_acl_default",
	indexTrusted:    "trusted.",
	5:               "lustre.",
	indexSecurity:   "security.",
}

// An xattr is one extended attribute.
type xattr struct {
	index uint8
	name  string // without the prefix
	value string
}

// attributesOf returns an entry's extended attributes, in order. What its kind
// of file cannot have is left out, except capabilities, without which a
// program fails later. Overlayfs's own, by which a layer could point into
// others, and labels, which belong to the host's policy, are left out too.
func attributesOf(h *tar.Header, kind uint8) ([]xattr, error) {
	var list []xattr
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || strings.HasPrefix(name, "trusted.overlay.") || name == "security.selinux" {
			continue
		}
		x, ok := xattrOf(name, value, kind)
		if !ok {
			continue
		}
		switch {
		case len(name) > maxName:
			return nil, fmt.Errorf("extended attribute %.50q…: the name is too long", name)
		case len(value) > maxValue:
			return nil, fmt.Errorf("extended attribute %s: %d bytes are too many", name, len(value))
		case name == "security.capability" && !validCapability(value):
			return nil, fmt.Errorf("extended attribute %s is invalid", name)
		}
		list = append(list, x)
	}
	slices.SortFunc(list, compareXattrs)
	return list, nil
}

func compareXattrs(a, b xattr) int {
	return cmp.Or(cmp.Compare(a.index, b.index), strings.Compare(a.name, b.name))
}

// xattrOf tells whether that kind of file can have an attribute, as setxattr(2)
// would.
func xattrOf(name, value string, kind uint8) (xattr, bool) {
	for index, prefix := range prefixes {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok || prefix == "" {
			continue
		}
		x := xattr{uint8(index), rest, value}
		switch index {
		case indexUser:
			return x, rest != "" && (kind == typeRegular || kind == typeDir)
		case indexAccessACL:
			return x, rest == "" && kind != typeLink && validACL(value)
		case indexDefaultACL:
			return x, rest == "" && kind == typeDir && validACL(value)
		case indexTrusted, indexSecurity:
			return x, rest != ""
		}
	}
	return xattr{}, false
}

// validCapability reports whether Linux would take a security.capability:
// struct vfs_cap_data of revision 2, or 3 with the namespace's root.
func validCapability(value string) bool {
	return len(value) == 20 && value[3] == 2 || len(value) == 24 && value[3] == 3
}

// merge sets later attributes over earlier ones.
func merge(earlier, later []xattr) []xattr {
	all := slices.Clone(later)
	for _, x := range earlier {
		if !slices.ContainsFunc(later, func(y xattr) bool { return compareXattrs(x, y) == 0 }) {
			all = append(all, x)
		}
	}
	slices.SortFunc(all, compareXattrs)
	return all
}

// Tags of an access control list's entries, in their order (kernel: posix_acl.h).
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// validACL reports whether Linux would take an access control list, and keep
// it: four bytes of version, then eight for each entry.
func validACL(value string) bool {
	if len(value) < 4+8 || len(value)%8 != 4 || value[:4] != "\x02\x00\x00\x00" {
		return false
	}
	seen, last := 0, 0
	for v := value[4:]; v != ""; v = v[8:] {
		tag := int(v[0]) | int(v[1])<<8
		named := tag == aclUser || tag == aclGroup
		switch {
		case !slices.Contains([]int{aclUserObj, aclUser, aclGroupObj, aclGroup, aclMask, aclOther}, tag),
			tag < last, tag == last && !named,
			v[2] > 7 || v[3] != 0,
			named && v[4:8] == "\xff\xff\xff\xff":
			return false
		}
		last = tag
		seen |= tag
	}
	if seen&(aclUser|aclGroup) != 0 && seen&aclMask == 0 {
		return false
	}
	const all = aclUserObj | aclGroupObj | aclOther
	return seen&all == all
}

// fitACL returns attributes with the access control list as chmod(2) leaves it.
func fitACL(list []xattr, mode uint16) []xattr {
	i := slices.IndexFunc(list, func(x xattr) bool { return x.index == indexAccessACL })
	if i < 0 {
		return list
	}
	acl := []byte(list[i].value)
	masked := false
	for v := acl[4:]; len(v) > 0; v = v[8:] {
		masked = masked || v[0] == aclMask
	}
	if !masked {
		return slices.Concat(list[:i], list[i+1:]) // says what the mode says
	}
	for v := acl[4:]; len(v) > 0; v = v[8:] {
		switch v[0] {
		case aclUserObj:
			v[2] = byte(mode >> 6 & 7)
		case aclMask:
			v[2] = byte(mode >> 3 & 7)
		case aclOther:
			v[2] = byte(mode & 7)
		}
	}
	list = slices.Clone(list)
	list[i].value = string(acl)
	return list
}

// A shared is the area of attributes that are not behind an inode.
type shared struct {
	data []byte
	at   map[string]uint32 // an entry's offset in it
}

// encode returns the bytes behind an inode for its attributes; nil for none.
func (s *shared) encode(list []xattr) ([]byte, error) {
	if len(list) == 0 {
		return nil, nil
	}
	var ids, inline []byte
	for _, x := range list {
		entry := x.encode()
		if len(inline)+len(entry) <= maxInline {
			inline = append(inline, entry...)
			continue
		}
		id, err := s.add(entry)
		if err != nil {
			return nil, err
		}
		ids = le.AppendUint32(ids, id/4)
	}
	if len(ids) > 4*maxShared {
		return nil, fmt.Errorf("has too many extended attributes: %d", len(list))
	}
	header := make([]byte, xattrHeader)
	header[4] = byte(len(ids) / 4)
	return slices.Concat(header, ids, inline), nil
}

func (s *shared) add(entry []byte) (uint32, error) {
	if at, ok := s.at[string(entry)]; ok {
		return at, nil
	}
	if len(s.data)+len(entry) > maxSharedBytes {
		return 0, fault.New(fault.Unknown, "", "the layer has extended attributes of more than %d MiB", maxSharedBytes>>20)
	}
	at := uint32(len(s.data))
	s.data = append(s.data, entry...)
	if s.at == nil {
		s.at = map[string]uint32{}
	}
	s.at[string(entry)] = at
	return at, nil
}

func (x xattr) encode() []byte {
	p := make([]byte, 4, align(4+len(x.name)+len(x.value), 4))
	p[0], p[1] = byte(len(x.name)), x.index
	le.PutUint16(p[2:], uint16(len(x.value)))
	p = append(append(p, x.name...), x.value...)
	return p[:cap(p)]
}
