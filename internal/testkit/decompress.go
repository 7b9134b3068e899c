package testkit

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Contents are data of all kinds for decompressors, by what they are; a real
// program among them.
func Contents(t testing.TB) map[string][]byte {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 300_000)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	few := make([]byte, 300_000) // of few symbols, so that codes are short
	for i := range few {
		few[i] = "aaaaaaaab\n"[rng.IntN(10)]
	}
	uneven := make([]byte, 300_000) // so that codes are as long as they get
	for i := range uneven {
		uneven[i] = byte(min(rng.ExpFloat64()*12, 255))
	}
	var periods []byte // matches of each distance up to 40, and of all lengths
	for n := 1; n <= 40; n++ {
		for length := 1; length <= 300; length += 1 + n%7 {
			periods = append(periods, noise[rng.IntN(1000):][:n]...)
			for range length {
				periods = append(periods, periods[len(periods)-n])
			}
		}
	}
	return map[string][]byte{
		"nothing": {}, "one byte": {'x'}, "program": program[:min(len(program), 700_000)], "zeros": make([]byte, 700_000),
		"noise": noise, "few": few, "uneven": uneven, "periods": periods,
	}
}

// ThreadTime returns the CPU time of the calling thread, to which the caller is locked.
func ThreadTime(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
