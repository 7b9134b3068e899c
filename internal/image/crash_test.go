package image

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

// pullUntilKilled is the child of TestKill: it pulls and removes images in dir
// for as long as it lives.
func pullUntilKilled(dir string) int {
	s, err := Open(testConfig(dir))
	if err != nil {
		fmt.Println("open:", err)
		return 1
	}
	fmt.Println("ready")
	ctx := context.Background()
	for {
		for _, ref := range strings.Fields(os.Getenv("DAVIT_TEST_REFS")) {
			if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
				fmt.Println("pull:", err)
				return 1
			}
			if rand.N(2) == 0 {
				if err := s.Remove(ctx, ref); err != nil {
					fmt.Println("remove:", err)
					return 1
				}
			}
		}
	}
}

// Whenever the process is killed, what the store shows afterwards is whole, and
// what it does not show is not on the disk.
func TestKill(t *testing.T) {
	testkit.Root(t)
	reg := newFakeRegistry(t)
	var refs []string
	for i := range 3 {
		var layers [][]byte
		for j := range 4 {
			if j == 3 {
				i = 9 // this layer they have in common
			}
			var files []string
			for k := range 40 {
				files = append(files, fmt.Sprintf("d%d/f%d-%d", k%7, i, k), strings.Repeat(fmt.Sprintln(i, j, k), 300))
			}
			layers = append(layers, tarOf(files...))
		}
		tag := fmt.Sprint(len(refs))
		reg.image("kill", tag, imagespec.Image{Author: tag}, layers...)
		refs = append(refs, reg.host()+"/kill:"+tag)
	}
	dir := t.TempDir()
	seen := 0
	for range 25 {
		killAPuller(t, dir, refs)
		s := openStore(t, dir)
		s.trash.Wait()
		layers := map[string]bool{}
		for _, image := range s.List() {
			seen++
			checkWhole(t, s, image.ID)
			for _, id := range s.view.Load().images[image.ID].Layers {
				layers[strings.Replace(id, ":", "-", 1)] = true
			}
		}
		for _, name := range names(t, filepath.Join(dir, "root/layers")) {
			if name != "staging" && !layers[strings.TrimSuffix(name, ".erofs")] {
				t.Errorf("%s is of no image", name)
			}
		}
		closeStore(t, s)
	}
	t.Logf("%d images were there after 25 kills", seen)
	s := openStore(t, dir)
	for _, ref := range refs {
		image, err := s.Pull(context.Background(), ref, PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		checkWhole(t, s, image.ID)
	}
}

func killAPuller(t *testing.T, dir string, refs []string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "DAVIT_TEST_PULLER="+dir, "DAVIT_TEST_REFS="+strings.Join(refs, " "))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	first, err := lines.ReadString('\n')
	if err != nil || first != "ready\n" {
		t.Errorf("%q %v", first, err)
	}
	time.Sleep(rand.N(120 * time.Millisecond)) // the moment of the kill is random
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	if rest, _ := io.ReadAll(lines); len(rest) > 0 {
		t.Errorf("it said: %s", rest)
	}
	_ = cmd.Wait()
}

// checkWhole reads every file of the images of TestKill.
func checkWhole(t *testing.T, s *Store, id string) {
	t.Helper()
	path, err := s.Mount(context.Background(), "check", id, MountOptions{})
	if err != nil {
		t.Error(err)
		return
	}
	files, err := filepath.Glob(filepath.Join(path, "d*/f*"))
	if err != nil || len(files) != 80 {
		t.Errorf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		data := read(t, file)
		line, _, _ := strings.Cut(data, "\n")
		if data != strings.Repeat(line+"\n", 300) {
			t.Errorf("%s has other content", file)
		}
	}
	if err := s.Unmount(context.Background(), "check"); err != nil {
		t.Error(err)
	}
}
