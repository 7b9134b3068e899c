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
// time it took. On a terminal a pull shows meanwhile how far it is, if the
// runtime is davitd; of others nothing is known but that it is under way.
type Steps struct {
	out      io.Writer
	terminal bool
	pulls    func(name string, show display) (stop func(failed bool))
}

// NewSteps shows steps at out.
func NewSteps(c *console.Console, out io.Writer) *Steps {
	return &Steps{out: out, terminal: isTerminal(out), pulls: commands{c}.follow}
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Step begins a step; end prints its line. A pull is shown as the step of its
// image.
func (s *Steps) Step(what, name string) (end func(outcome string)) {
	began := time.Now()
	stop := func(bool) {}
	if what == play.StepPull {
		what, stop = play.StepImage, s.pull(name)
	}
	return func(outcome string) {
		stop(outcome == play.Failed)
		if name != "" {
			outcome = name + "  " + outcome
		}
		fmt.Fprintf(s.out, "  %-10s %-60s %9s\n", what, outcome, console.Took(began))
	}
}

func (s *Steps) pull(name string) (stop func(failed bool)) {
	if !s.terminal {
		return s.pulls(name, &lines{out: s.out, quiet: true})
	}
	b := newBars(s.out)
	spinner := b.progress.New(0, mpb.SpinnerStyle(), mpb.BarWidth(1), mpb.BarPriority(0),
		mpb.PrependDecorators(decor.Name(fmt.Sprintf("  %-10s %s ", play.StepImage, name))),
		mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_GO)))
	end := s.pulls(name, b)
	return func(failed bool) {
		end(failed)
		spinner.Abort(true)
		b.close()
	}
}
