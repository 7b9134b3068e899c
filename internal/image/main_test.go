package image

import (
	"os"
	"testing"
	"time"

	"github.com/davit-runtime/davit/internal/testkit"
)

var zeroTime time.Time

func TestMain(m *testing.M) {
	if dir := os.Getenv("DAVIT_TEST_PULLER"); dir != "" {
		os.Exit(pullUntilKilled(dir))
	}
	testkit.Main(m)
}
