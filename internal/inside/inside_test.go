package inside

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/testkit"
)

// As root, a bug here would write anywhere: the tests have no other file system
// that they can write to than one of their own.
func TestMain(m *testing.M) {
	code, within := testkit.Inside()
	if within {
		if code = confine(); code == 0 {
			code = m.Run()
		}
	}
	os.Exit(code)
}

func confine() (code int) {
	if os.Geteuid() != 0 || os.Getenv("DAVIT_NOROOT") != "" {
		return 0
	}
	const own = "/mnt"
	program, err := os.Executable()
	logs := filepath.Dir(program) // go test's, beside the program
	err = errors.Join(
		err,
		unix.Mount("tmpfs", own, "tmpfs", 0, "mode=1777"),
		os.Setenv("TMPDIR", own),
		unix.Mount(logs, logs, "", unix.MS_BIND, ""),
		unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""),
	)
	if err != nil {
		fmt.Fprintln(os.Stderr, "confine the tests:", err)
		return 1
	}
	return 0
}

// rooted is dir as the root of a container.
func rooted(t *testing.T, dir string) *Tree {
	t.Helper()
	tree, err := Local(dir)
	if err != nil {
		t.Fatal(err)
	}
	tree.how = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	t.Cleanup(func() { _ = tree.Close() })
	return tree
}

func local(t *testing.T, dir string) *Tree {
	t.Helper()
	tree, err := Local(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tree.Close() })
	return tree
}

// unpack runs in a goroutine of its own, as Unpack wants it.
func unpack(tree *Tree, from io.Reader, dir string, owners bool) (leftOut []string, err error) {
	done := make(chan error)
	go func() {
		done <- tree.Unpack(context.Background(), from, dir, owners, func(name string) { leftOut = append(leftOut, name) })
	}()
	err = <-done
	return leftOut, err
}

func pack(t *testing.T, tree *Tree, path, as string) (*bytes.Buffer, []string) {
	t.Helper()
	var out bytes.Buffer
	var leftOut []string
	if err := tree.Pack(t.Context(), path, as, &out, func(name string) { leftOut = append(leftOut, name) }); err != nil {
		t.Fatal(err)
	}
	return &out, leftOut
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// stream is a tar stream as anybody may write one.
func stream(t *testing.T, headers ...tar.Header) *bytes.Buffer {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content = "from the stream"
		}
		h.Size = int64(len(content))
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &out
}

// What is copied is as it was: content, modes, times, links of both kinds.
func TestCopy(t *testing.T) {
	testkit.Root(t)
	from, to := t.TempDir(), t.TempDir()
	large := strings.Repeat("0123456789abcdef", 3*wholeBytes/16)
	write(t, from+"/a/large", large, 0o640)
	write(t, from+"/a/b/empty", "", 0o400)
	write(t, from+"/a/program", "#!", 0o4755)
	when := time.Unix(1_600_000_000, 123_000_000)
	if err := errors.Join(os.Symlink("/b/empty", from+"/a/link"), os.Link(from+"/a/large", from+"/a/same"), unix.Mkfifo(from+"/a/pipe", 0o600),
		os.Chmod(from+"/a/b", 0o700|os.ModeSticky), os.Chtimes(from+"/a/b", when, when), os.Chtimes(from+"/a/large", when, when)); err != nil {
		t.Fatal(err)
	}
	content, leftOut := pack(t, local(t, from), "a", "z")
	if len(leftOut) != 1 || leftOut[0] != "z/pipe" {
		t.Errorf("left out: %q", leftOut)
	}
	again := bytes.NewReader(content.Bytes())
	for range 2 { // also over what is there
		if _, err := unpack(local(t, to), again, ".", false); err != nil {
			t.Fatal(err)
		}
		again = bytes.NewReader(content.Bytes())
	}
	if read(t, to+"/z/large") != large || read(t, to+"/z/b/empty") != "" {
		t.Error("another content")
	}
	if target, err := os.Readlink(to + "/z/link"); target != "/b/empty" {
		t.Errorf("link to %q, %v", target, err)
	}
	for path, mode := range map[string]os.FileMode{"large": 0o640, "b/empty": 0o400, "b": os.ModeDir | os.ModeSticky | 0o700, "program": 0o755} {
		info, err := os.Stat(to + "/z/" + path)
		if err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
		if (path == "b" || path == "large") && !info.ModTime().Equal(when) {
			t.Errorf("%s: %v", path, info.ModTime())
		}
	}
	one, _ := os.Stat(to + "/z/large")
	other, _ := os.Stat(to + "/z/same")
	if !os.SameFile(one, other) {
		t.Error("a hard link became a file of its own")
	}
	if _, err := unpack(local(t, to), bytes.NewReader(content.Bytes()[:content.Len()/2]), ".", false); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half a stream: %v", err)
	}
}

// No stream, and no link that is there, leads out of a tree.
func TestNothingLeadsOut(t *testing.T) {
	testkit.Root(t)
	for name, entries := range map[string][]tar.Header{
		"dots":              {{Typeflag: tar.TypeReg, Name: "../../victim"}},
		"absolute":          {{Typeflag: tar.TypeReg, Name: "/victim"}},
		"link, then below":  {{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "OUT"}, {Typeflag: tar.TypeReg, Name: "a/victim"}},
		"relative link":     {{Typeflag: tar.TypeSymlink, Name: "a", Linkname: ".."}, {Typeflag: tar.TypeReg, Name: "a/victim"}},
		"link, then itself": {{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "OUT/victim"}, {Typeflag: tar.TypeReg, Name: "a"}},
		"link as directory": {{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "OUT"}, {Typeflag: tar.TypeDir, Name: "a", Mode: 0o777}},
		"hard link":         {{Typeflag: tar.TypeLink, Name: "a", Linkname: "../victim"}, {Typeflag: tar.TypeReg, Name: "a"}},
		"hard link by link": {{Typeflag: tar.TypeSymlink, Name: "d", Linkname: "OUT"}, {Typeflag: tar.TypeLink, Name: "a", Linkname: "d/victim"}, {Typeflag: tar.TypeReg, Name: "a"}},
		"there":             {{Typeflag: tar.TypeReg, Name: "there/victim"}},
		"there is":          {{Typeflag: tar.TypeReg, Name: "is"}},
	} {
		for kind, in := range map[string]func(*testing.T, string) *Tree{"local": local, "container": rooted} {
			t.Run(kind+" "+name, func(t *testing.T) {
				top := t.TempDir()
				victim, dir := top+"/victim", top+"/dir"
				write(t, victim, "whole", 0o600)
				if err := errors.Join(os.Mkdir(dir, 0o755), os.Symlink(top, dir+"/there"), os.Symlink(victim, dir+"/is")); err != nil {
					t.Fatal(err)
				}
				entries := append([]tar.Header(nil), entries...)
				for i := range entries {
					entries[i].Linkname = strings.ReplaceAll(entries[i].Linkname, "OUT", top)
				}
				_, err := unpack(in(t, dir), stream(t, entries...), ".", false)
				info, _ := os.Stat(victim)
				all, _ := os.ReadDir(top)
				if read(t, victim) != "whole" || len(all) != 2 || info.Mode() != 0o600 {
					t.Errorf("it led out (%v): %v %v", err, all, info.Mode())
				}
				if above, _ := os.Stat(top); above.Mode().Perm()&0o022 != 0 {
					t.Errorf("the directory above is %v now", above.Mode())
				}
			})
		}
	}
	dir := t.TempDir()
	write(t, dir+"/out", "out", 0o600)
	write(t, dir+"/root/in", "in", 0o600)
	for _, link := range []string{dir + "/out", "../out", "/proc/self/root" + dir + "/out"} {
		_ = os.Remove(dir + "/root/link")
		if err := os.Symlink(link, dir+"/root/link"); err != nil {
			t.Fatal(err)
		}
		if err := rooted(t, dir+"/root").Pack(t.Context(), "link", "x", io.Discard, nil); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("link to %s: %v", link, err)
		}
	}
	if _, err := rooted(t, dir+"/root").Mode("../../../in"); err != nil {
		t.Error(err)
	}
}

// A file that is there stays what it is, since it may be a mount; a mount is
// not removed; a device is not opened.
func TestWhatIsThere(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	write(t, dir+"/source", "old", 0o600)
	write(t, dir+"/root/mount", "", 0o600)
	if err := unix.Mount(dir+"/source", dir+"/root/mount", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir+"/root/mount", 0); err != nil {
			t.Errorf("the mount was taken away: %v", err)
		}
	}()
	if err := unix.Mknod(dir+"/root/device", unix.S_IFCHR|0o600, int(unix.Mkdev(250, 250))); err != nil {
		t.Fatal(err)
	}
	if _, err := unpack(rooted(t, dir+"/root"), stream(t, tar.Header{Typeflag: tar.TypeReg, Name: "mount"}), ".", false); err != nil || read(t, dir+"/source") != "from the stream" {
		t.Errorf("%q, %v", read(t, dir+"/source"), err)
	}
	for name, want := range map[string]string{"mount": "a mount is there", "device": "a device, pipe or socket is there"} {
		_, err := unpack(rooted(t, dir+"/root"), stream(t, tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: "x"}), ".", false)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := unpack(rooted(t, dir+"/root"), stream(t, tar.Header{Typeflag: tar.TypeReg, Name: "device"}), ".", false); err == nil {
		t.Error("a device was written")
	}
	leftOut, err := unpack(rooted(t, dir+"/root"), stream(t, tar.Header{Typeflag: tar.TypeBlock, Name: "disk"}), ".", false)
	if err != nil || len(leftOut) != 1 || leftOut[0] != "disk" {
		t.Errorf("%q, %v", leftOut, err)
	}
}

// Users are those of the tree; who has none there is an error.
func TestOwners(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	tree := rooted(t, dir)
	tree.users, tree.groups = idMap{{0, 100_000, 1000}}, idMap{{0, 200_000, 1000}}
	file := func(name string) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Uid: 7, Gid: 8, Mode: 0o4755}
	}
	for name, want := range map[string][3]uint32{"theirs": {100_007, 200_008, 0o4755}, "roots": {100_000, 200_000, 0o755}} {
		if _, err := unpack(tree, stream(t, file(name)), ".", name == "theirs"); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(dir+"/"+name, &st); err != nil || [3]uint32{st.Uid, st.Gid, st.Mode & 0o7777} != want {
			t.Errorf("%s: %d %d %o, %v", name, st.Uid, st.Gid, st.Mode, err)
		}
	}
	content, _ := pack(t, tree, "theirs", "x")
	if h, err := tar.NewReader(content).Next(); err != nil || h.Uid != 7 || h.Gid != 8 {
		t.Errorf("%+v, %v", h, err)
	}
	nobody := file("nobody")
	nobody.Uid = 5000
	if _, err := unpack(tree, stream(t, nobody), ".", true); err == nil || !strings.Contains(err.Error(), "no user 5000") {
		t.Errorf("%v", err)
	}
	if _, err := os.Create(dir + "/by-us"); err != nil { // this thread, or another, is root still
		t.Fatal(err)
	}
	info, _ := os.Stat(dir + "/by-us")
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 {
		t.Errorf("user %d", uid)
	}
}

// A process is only taken for a container's if its control group says so.
func TestFind(t *testing.T) {
	if _, err := Find(os.Getpid(), strings.Repeat("0123456789abcdef", 4)); err == nil || !strings.Contains(err.Error(), "its runtime is on another node") {
		t.Errorf("%v", err)
	}
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := Find(gone.Process.Pid, "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// A container whose sessions are lost ends; with one, it goes on.
func TestWaitAlone(t *testing.T) {
	testkit.Root(t)
	other := exec.Command("sleep", "100")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- WaitAlone(t.Context(), time.Millisecond) }()
	if now, err := alone("/proc"); now || err != nil {
		t.Errorf("%v, %v", now, err)
	}
	select {
	case err := <-ended:
		t.Errorf("it ended, though there is another process: %v", err)
	default:
	}
	_ = other.Process.Kill()
	_ = other.Wait()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	over, end := context.WithCancel(t.Context())
	end()
	if err := WaitAlone(over, time.Hour); err != nil {
		t.Error(err)
	}
	proc := t.TempDir()
	for _, dir := range []string{"self", "17", "18"} {
		if err := errors.Join(os.MkdirAll(proc+"/"+dir+"/ns", 0o755), os.Symlink("mnt:["+dir+"]", proc+"/"+dir+"/ns/mnt")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := alone(proc); err == nil {
		t.Error("it is not there itself")
	}
	if err := errors.Join(os.Remove(proc+"/17/ns/mnt"), os.Symlink("mnt:[self]", proc+"/17/ns/mnt")); err != nil {
		t.Fatal(err)
	}
	if now, err := alone(proc); !now || err != nil {
		t.Errorf("%v, %v", now, err)
	}
}

// Whatever a stream has, in whatever order, nothing is made outside.
func TestAnyStream(t *testing.T) {
	testkit.Root(t)
	names := []string{"a", "b", "a/b", "b/a", "../a", "/a/b/c", "a/../b", "c", "./a/c", "."}
	targets := []string{"/", "..", "../..", "a", "/a/b", "../out", "/proc/self/root", "b/..", "."}
	kinds := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo}
	random := rand.New(rand.NewPCG(1, 2))
	made := 0
	for round := range 400 {
		top := t.TempDir()
		write(t, top+"/out", "whole", 0o640)
		if err := os.Mkdir(top+"/dir", 0o750); err != nil {
			t.Fatal(err)
		}
		var entries []tar.Header
		for range 1 + random.IntN(6) {
			entries = append(entries, tar.Header{
				Typeflag: kinds[random.IntN(len(kinds))], Name: names[random.IntN(len(names))], Linkname: targets[random.IntN(len(targets))],
			})
		}
		for _, in := range []func(*testing.T, string) *Tree{local, rooted} {
			if _, err := unpack(in(t, top+"/dir"), stream(t, entries...), ".", round%2 == 0); err == nil {
				made++
			}
			all, _ := os.ReadDir(top)
			info, err := os.Stat(top + "/out")
			if err != nil || len(all) != 2 || info.Mode() != 0o640 || read(t, top+"/out") != "whole" {
				t.Fatalf("%+v led out: %v", entries, all)
			}
		}
	}
	if made < 100 {
		t.Errorf("only %d of 800 streams could be unpacked", made)
	}
}
