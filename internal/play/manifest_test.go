package play

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with a file, or rewrites it.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update rewrites it)\n%s", path, diff)
	}
}

// TestReadRefuses has manifests in testdata/bad with what is said of each.
func TestReadRefuses(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Read(filepath.Base(f), data)
		var bad *ManifestError
		if !errors.As(err, &bad) {
			t.Errorf("%s: Read = %v, want a ManifestError", f, err)
			continue
		}
		golden(t, strings.TrimSuffix(f, ".yaml")+".txt", bad.Error()+"\n")
	}
}

func TestReadExample(t *testing.T) {
	data, err := os.ReadFile("../../examples/hello.yaml")
	if err != nil {
		t.Fatal(err)
	}
	pods, err := Read("hello.yaml", data)
	if err != nil || len(pods) != 1 || pods[0].Name != "hello" {
		t.Fatalf("Read = %v, %v", pods, err)
	}
}

func TestReadSeveral(t *testing.T) {
	one := "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i}]}\n"
	json := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"},"spec":{"containers":[{"name":"c","image":"i"}]}}`
	pods, err := Read("x", []byte("# two\n---\n"+one+"---\n\n---   \n"+json+"\n---\n# nothing\n"))
	if err != nil || len(pods) != 2 || pods[0].Name != "a" || pods[1].Name != "b" {
		t.Fatalf("Read = %v, %v", pods, err)
	}
}

func TestReadList(t *testing.T) {
	one := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"},"spec":{"containers":[{"name":"c","image":"i","securityContext":{"runAsUser":7}}],"hostUsers":false}}`
	pods, err := Read("x", []byte(`{"apiVersion":"v1","kind":"List","metadata":{"resourceVersion":""},"items":[`+strings.Replace(one, `"b"`, `"a"`, 1)+","+one+"]}\n---\n"+strings.Replace(one, `"b"`, `"c"`, 1)))
	if err != nil || len(pods) != 3 || pods[0].Name != "a" || pods[2].Name != "c" || *pods[1].Spec.Containers[0].SecurityContext.RunAsUser != 7 {
		t.Fatalf("Read = %v, %v", pods, err)
	}
}

func TestImageTag(t *testing.T) {
	for _, c := range []struct{ image, tag, full string }{
		{"busybox", "latest", "busybox:latest"},
		{"busybox:latest", "latest", "busybox:latest"},
		{"busybox:1", "1", "busybox:1"},
		{"127.0.0.1:5000/a", "latest", "127.0.0.1:5000/a:latest"},
		{"127.0.0.1:5000/a:2", "2", "127.0.0.1:5000/a:2"},
		{"a@sha256:00", "", "a@sha256:00"},
		{"a:1@sha256:00", "1", "a:1@sha256:00"},
	} {
		if got := imageTag(c.image); got != c.tag {
			t.Errorf("imageTag(%s) = %q, want %q", c.image, got, c.tag)
		}
		if got := withTag(c.image); got != c.full {
			t.Errorf("withTag(%s) = %q, want %q", c.image, got, c.full)
		}
	}
}

// FuzzRead: no manifest, however strange, does anything but fail or give Pods
// that validate accepts.
func FuzzRead(f *testing.F) {
	for _, pattern := range []string{"testdata/*/*.yaml", "../../examples/*.yaml"} {
		files, _ := filepath.Glob(pattern)
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		pods, err := Read("fuzz", data)
		if err != nil {
			return
		}
		for _, pod := range pods {
			if problems := validate(pod); len(problems) > 0 {
				t.Errorf("accepted, but %v", problems)
			}
			for c := range eachContainer(&pod.Spec) {
				if _, _, err := environment(pod, c, Node{}, nil); err != nil {
					t.Error(err)
				}
				linuxResources(&c.Resources)
			}
		}
	})
}
