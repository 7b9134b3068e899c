package images

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/davit-runtime/davit/cmd/davit/console"
	"github.com/davit-runtime/davit/internal/play"
)

// Steps shows what is done, a line for each step when it has ended, with the
// time it took. On a terminal a pull shows that it is under way; the CRI tells
// nothing of how far it is.
type Steps struct {
	out      io.Writer
	terminal bool
}

func NewSteps(out io.Writer) *Steps {
	f, ok := out.(*os.File)
	return &Steps{out: out, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

// Step begins a step; end prints its line.
func (s *Steps) Step(what, name string) (end func(outcome string)) {
	began := time.Now()
	stop := func() {}
	if s.terminal && what == play.StepImage {
		stop = s.spin(what, name)
	}
	return func(outcome string) {
		stop()
		if name != "" {
			outcome = name + "  " + outcome
		}
		fmt.Fprintf(s.out, "  %-10s %-60s %9s\n", what, outcome, console.Took(began))
	}
}

func (s *Steps) spin(what, name string) (stop func()) {
	progress := mpb.New(mpb.WithOutput(s.out))
	bar := progress.New(0, mpb.SpinnerStyle(), mpb.BarWidth(1),
		mpb.PrependDecorators(decor.Name(fmt.Sprintf("  %-10s %s ", what, name))),
		mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_GO)))
	return func() {
		bar.Abort(true)
		progress.Wait()
	}
}
