package callv1_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestGeneratedFromThis(t *testing.T) {
	source, err := os.ReadFile("call.proto")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("// Made of call.proto with SHA-256 %x.\n", sha256.Sum256(source))
	for _, name := range []string{"call.pb.go", "call_grpc.pb.go"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is of another call.proto; run make generate", name)
		}
	}
}
