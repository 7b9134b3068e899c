package ocispec

import (
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/sys/user"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// maxAccountFile bounds what is read of an image's passwd or group file.
const maxAccountFile = 16 << 20

// ResolveUser says who the container's first process runs as: what the
// security context asks for, else imageUser ("user", "uid", either with
// ":group"), else root. Names come from /etc/passwd and /etc/group below
// rootfs; symbolic links there never lead out of it.
//
// It returns Invalid for a name that is not there and for fields that
// contradict each other. Numbers need not be in the files.
//
// CRI: api.proto, LinuxContainerSecurityContext, SupplementalGroupsPolicy.
func ResolveUser(rootfs string, sc *runtimeapi.LinuxContainerSecurityContext, imageUser string) (User, error) {
	name, group, err := userWanted(sc, imageUser)
	if err != nil {
		return User{}, err
	}
	passwd, err := readInRoot(rootfs, "etc/passwd")
	if err != nil {
		return User{}, err
	}
	groups, err := readInRoot(rootfs, "etc/group")
	if err != nil {
		return User{}, err
	}
	return resolveUser(passwd, groups, name, group, sc)
}

// userWanted returns user and group, each a name, a number or empty.
func userWanted(sc *runtimeapi.LinuxContainerSecurityContext, imageUser string) (name, group string, err error) {
	switch {
	case sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "":
		return "", "", fault.New(fault.Invalid, "", "run_as_user and run_as_username are both set")
	case sc.GetRunAsUser() != nil:
		name = strconv.FormatInt(sc.RunAsUser.Value, 10)
	case sc.GetRunAsUsername() != "":
		name = sc.RunAsUsername
	case sc.GetRunAsGroup() != nil:
		return "", "", fault.New(fault.Invalid, "", "run_as_group is set without run_as_user or run_as_username")
	default:
		name, group, _ = strings.Cut(imageUser, ":")
	}
	if sc.GetRunAsGroup() != nil {
		group = strconv.FormatInt(sc.RunAsGroup.Value, 10)
	}
	if name == "" {
		name = "0"
	}
	return name, group, nil
}

func resolveUser(passwd, groups, name, group string, sc *runtimeapi.LinuxContainerSecurityContext) (User, error) {
	u := User{Home: "/"}
	account, err := findAccount(passwd, name)
	if err != nil {
		return User{}, err
	}
	if account != nil {
		u.Name = account.Name
		if strings.HasPrefix(account.Home, "/") {
			u.Home = account.Home
		}
		if u.UID, err = id("user", int64(account.Uid)); err != nil {
			return User{}, err
		}
		if u.GID, err = id("group", int64(account.Gid)); err != nil {
			return User{}, err
		}
	} else if u.UID, err = number("user", name); err != nil {
		return User{}, err
	}
	if group != "" {
		if u.GID, err = findGroup(groups, group); err != nil {
			return User{}, err
		}
	}
	u.AdditionalGids = []uint32{u.GID}
	switch policy := sc.GetSupplementalGroupsPolicy(); policy {
	case runtimeapi.SupplementalGroupsPolicy_Merge:
		more, err := memberships(groups, u.Name)
		if err != nil {
			return User{}, err
		}
		u.AdditionalGids = append(u.AdditionalGids, more...)
	case runtimeapi.SupplementalGroupsPolicy_Strict:
	default:
		return User{}, fault.New(fault.Invalid, "", "unknown supplemental_groups_policy %d", policy)
	}
	for _, g := range sc.GetSupplementalGroups() {
		gid, err := id("supplemental group", g)
		if err != nil {
			return User{}, err
		}
		u.AdditionalGids = append(u.AdditionalGids, gid)
	}
	u.AdditionalGids = unique(u.AdditionalGids)
	return u, nil
}

// findAccount looks name up, first as a name, then as a number. It returns
// nil if there is no such entry.
func findAccount(passwd, name string) (*user.User, error) {
	uid, numeric := atoi(name)
	all, err := user.ParsePasswdFilter(strings.NewReader(passwd), func(u user.User) bool {
		return u.Name == name || numeric && int64(u.Uid) == uid
	})
	if err != nil {
		return nil, fault.New(fault.Invalid, "", "/etc/passwd of the image: %w", err)
	}
	if i := slices.IndexFunc(all, func(u user.User) bool { return u.Name == name }); i >= 0 {
		return &all[i], nil
	}
	if len(all) > 0 {
		return &all[0], nil
	}
	return nil, nil
}

func findGroup(groups, name string) (uint32, error) {
	all, err := user.ParseGroupFilter(strings.NewReader(groups), func(g user.Group) bool { return g.Name == name })
	if err != nil {
		return 0, fault.New(fault.Invalid, "", "/etc/group of the image: %w", err)
	}
	if len(all) > 0 {
		return id("group", int64(all[0].Gid))
	}
	return number("group", name)
}

// memberships returns the groups that list the user.
func memberships(groups, name string) ([]uint32, error) {
	if name == "" {
		return nil, nil
	}
	all, err := user.ParseGroupFilter(strings.NewReader(groups), func(g user.Group) bool { return slices.Contains(g.List, name) })
	if err != nil {
		return nil, fault.New(fault.Invalid, "", "/etc/group of the image: %w", err)
	}
	var gids []uint32
	for _, g := range all {
		gid, err := id("group", int64(g.Gid))
		if err != nil {
			return nil, err
		}
		gids = append(gids, gid)
	}
	return gids, nil
}

// number parses the ID of a user or group that no file names.
func number(what, s string) (uint32, error) {
	n, ok := atoi(s)
	if !ok {
		return 0, fault.New(fault.Invalid, "", "%s %q: not in the image's /etc/%s", what, s, map[string]string{"user": "passwd", "group": "group"}[what])
	}
	return id(what, n)
}

func id(what string, n int64) (uint32, error) {
	if n < 0 || n > math.MaxInt32 {
		return 0, fault.New(fault.Invalid, "", "%s %d: out of range", what, n)
	}
	return uint32(n), nil
}

func atoi(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

func unique(in []uint32) []uint32 {
	var out []uint32
	for _, v := range in {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

// readInRoot reads a file of the image, empty if there is none. It never
// opens anything but a regular file, since a FIFO would block for ever.
func readInRoot(rootfs, name string) (string, error) {
	handle, err := pathrs.OpenInRoot(rootfs, name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fault.New(fault.Internal, "ocispec.ResolveUser", "%w", err)
	}
	defer handle.Close()
	if st, err := handle.Stat(); err != nil || !st.Mode().IsRegular() {
		return "", fault.New(fault.Invalid, "", "/%s of the image is not a regular file", name)
	}
	f, err := pathrs.Reopen(handle, os.O_RDONLY)
	if err != nil {
		return "", fault.New(fault.Internal, "ocispec.ResolveUser", "%w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxAccountFile))
	if err != nil {
		return "", fault.New(fault.Internal, "ocispec.ResolveUser", "%w", err)
	}
	return string(text), nil
}
