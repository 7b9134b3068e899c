package idmap

import (
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func mapping(container, host, length uint32) *runtimeapi.IDMapping {
	return &runtimeapi.IDMapping{ContainerId: container, HostId: host, Length: length}
}

func TestFromCRI(t *testing.T) {
	type list = []*runtimeapi.IDMapping
	for _, test := range []struct {
		name       string
		uids, gids list
		want       Map
		says       string // an error's text; "": none
	}{
		{"nothing", nil, nil, Map{}, ""},
		{"one each", list{mapping(0, 100, 10)}, list{mapping(0, 200, 20)}, Map{[]Range{{0, 100, 10}}, []Range{{0, 200, 20}}}, ""},
		{"order is kept", list{mapping(5, 1, 1), mapping(0, 9, 2)}, nil, Map{UIDs: []Range{{5, 1, 1}, {0, 9, 2}}}, ""},
		{"up to the last", list{mapping(0, 1, math.MaxUint32-1)}, nil, Map{UIDs: []Range{{0, 1, math.MaxUint32 - 1}}}, ""},
		{"empty range", nil, list{mapping(0, 1, 0)}, Map{}, "gids: a mapping of length 0"},
		{"past the end on the host", list{mapping(0, 1, math.MaxUint32)}, nil, Map{}, "uids: a mapping of 4294967295 IDs from 0 to 1 passes the last ID"},
		{"past the end inside", list{mapping(math.MaxUint32, 0, 1)}, nil, Map{}, "passes the last ID"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := FromCRI(test.uids, test.gids)
			if test.says != "" {
				if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), test.says) || !got.Empty() {
					t.Errorf("%v, %v", got, err)
				}
				return
			}
			if err != nil || !got.Equal(test.want) {
				t.Errorf("%v, %v; want %v", got, err, test.want)
			}
		})
	}
}

func TestMap(t *testing.T) {
	m := Map{UIDs: []Range{{0, 1000, 10}, {100, 5, 1}}, GIDs: []Range{{0, 2000, 10}}}
	for _, test := range []struct{ uid, gid, hostUID, hostGID uint32 }{
		{0, 0, 1000, 2000},
		{9, 9, 1009, 2009},
		{10, 10, overflow, overflow},
		{100, 100, 5, overflow},
		{math.MaxUint32, 0, overflow, 2000},
	} {
		if uid, gid := m.Host(test.uid, test.gid); uid != test.hostUID || gid != test.hostGID {
			t.Errorf("%d:%d is %d:%d on the host", test.uid, test.gid, uid, gid)
		}
	}
	if uid, gid := (Map{}).Host(7, 8); uid != 7 || gid != 8 {
		t.Errorf("without a namespace: %d:%d", uid, gid)
	}
	if (Map{}).Equal(m) || m.Equal(Map{UIDs: m.UIDs}) || !m.Equal(Map{slices.Clone(m.UIDs), slices.Clone(m.GIDs)}) {
		t.Error("equality")
	}
	if !(Map{}).Empty() || m.Empty() || (Map{GIDs: m.GIDs}).Empty() {
		t.Error("emptiness")
	}
}

// A namespace has the map it was made with.
func TestOpen(t *testing.T) {
	testkit.Root(t)
	m := Map{UIDs: []Range{{0, 300000, 1000}}, GIDs: []Range{{0, 400000, 10}, {10, 500000, 5}}}
	f, err := m.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWUSER {
		t.Errorf("type %#x, %v", kind, err)
	}
	locked := make(chan struct{})
	go func() { // a thread that is not needed again
		defer close(locked)
		runtime.LockOSThread()
		err := m.WithNamespaces(unix.CLONE_NEWUTS, func(proc string) error {
			for file, want := range map[string]string{"uid_map": "0 300000 1000", "gid_map": "0 400000 10 10 500000 5"} {
				text, err := os.ReadFile(filepath.Join(proc, file))
				if got := strings.Join(strings.Fields(string(text)), " "); err != nil || got != want {
					t.Errorf("%s is %q, %v", file, got, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}()
	<-locked
}

// A tree shows a directory by a map, read-only where asked, and what is done to
// it does not reach its source.
func TestTree(t *testing.T) {
	testkit.Root(t)
	testkit.Leftovers(t).Ignore("^cgroup ")
	dir := t.TempDir()
	source, below := filepath.Join(dir, "source"), filepath.Join(dir, "source", "below")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("inner", below, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(below, unix.MNT_DETACH) }()
	for _, path := range []string{filepath.Join(source, "file"), filepath.Join(below, "file")} {
		if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ids := []Range{{0, 300000, 65536}}
	users := &Users{Map: Map{UIDs: ids, GIDs: ids}}
	at := filepath.Join(dir, "trees", "at")
	for _, test := range []struct {
		name     string
		tree     Tree
		owner    uint32 // as the host sees it
		readOnly bool
	}{
		{"as it is", Tree{Source: source}, 0, false},
		{"mapped", Tree{Source: source, Users: users}, 300000, false},
		{"read-only, also below", Tree{Source: source, ReadOnly: true}, 0, true},
		{"one file", Tree{Source: filepath.Join(source, "file"), Users: users, ReadOnly: true}, 300000, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			defer func() {
				for range 2 {
					if err := DetachAll(filepath.Dir(at)); err != nil {
						t.Error(err)
					}
				}
				if _, err := os.Lstat(at); !os.IsNotExist(err) {
					t.Errorf("left: %v", err)
				}
			}()
			if err := test.tree.Try(); err != nil {
				t.Fatal(err)
			}
			if err := test.tree.Attach(at); err != nil {
				t.Fatal(err)
			}
			files := []string{filepath.Join(at, "file"), filepath.Join(at, "below", "file")}
			if filepath.Base(test.tree.Source) == "file" {
				files = []string{at}
			}
			for _, file := range files {
				var st unix.Stat_t
				if err := unix.Stat(file, &st); err != nil || st.Uid != test.owner || st.Gid != test.owner {
					t.Errorf("%s is of %d:%d, %v", file, st.Uid, st.Gid, err)
				}
				err := os.WriteFile(file, []byte("x"), 0o644)
				if readOnly := err != nil && strings.Contains(err.Error(), "read-only"); readOnly != test.readOnly && test.owner == 0 {
					t.Errorf("write to %s: %v", file, err)
				}
			}
			if len(files) > 1 {
				if err := unix.Unmount(filepath.Join(at, "below"), unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			}
			if _, err := os.Stat(filepath.Join(below, "file")); err != nil {
				t.Errorf("unmounting in the tree reached the source: %v", err)
			}
		})
	}
	if err := (Tree{Source: filepath.Join(dir, "absent")}).Attach(at); !fault.Is(err, fault.Precondition) {
		t.Errorf("a source that is not there: %v", err)
	}
	if err := (Tree{Source: "/proc", Users: users}).Try(); !fault.Is(err, fault.Unimplemented) || !strings.Contains(err.Error(), "/proc") {
		t.Errorf("a file system that cannot be mapped: %v", err)
	}
	if err := Detach(filepath.Join(dir, "never")); err != nil {
		t.Error(err)
	}
}
