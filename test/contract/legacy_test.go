package contract

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/davit-runtime/davit/internal/testkit"
)

var legacyProgram = flag.String("legacy", "", "the `program` of test/legacy, built; without it, it is built here")

// TestLegacyClient: the unchanged v1alpha2 client of cri-api 0.25 drives a
// pod's whole life.
func TestLegacyClient(t *testing.T) {
	w := shared(t)
	w.needLegacy()
	program := *legacyProgram
	if program == "" {
		program = buildLegacy(t)
	}
	files, err := testkit.BusyboxFiles()
	if err != nil {
		t.Fatal(err)
	}
	img, err := testkit.NewImage(testkit.ImageSpec{Layers: [][]testkit.File{files, {{Name: "legacy", Data: []byte(w.own)}}}})
	if err != nil {
		t.Fatal(err)
	}
	socket := *endpoint
	if w.d != nil {
		socket = "unix://" + w.d.Socket
	}
	cmd := exec.CommandContext(w.ctx, program, "-endpoint", socket, "-choose", "v1", "-image", w.push("contract/legacy:1", img), "-logs", t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// buildLegacy builds the client, which is a module of its own.
func buildLegacy(t *testing.T) string {
	t.Helper()
	top, err := testkit.Top()
	if err != nil {
		t.Skip("the sources are not here; flag -legacy names the program")
	}
	program := filepath.Join(t.TempDir(), "legacy")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", program, ".")
	cmd.Dir, cmd.Env = filepath.Join(top, "test", "legacy"), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build test/legacy: %v\n%s", err, out)
	}
	return program
}
