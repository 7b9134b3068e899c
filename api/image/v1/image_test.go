package imagev1_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestGeneratedFromThis(t *testing.T) {
	source, err := os.ReadFile("image.proto")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("// Made of image.proto with SHA-256 %x.\n", sha256.Sum256(source))
	for _, name := range []string{"image.pb.go", "image_grpc.pb.go"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is of another image.proto; run make generate", name)
		}
	}
}
