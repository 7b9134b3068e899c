package images

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	imagev1 "github.com/davit-runtime/davit/api/image/v1"
	"github.com/davit-runtime/davit/cmd/davit/console"
	"github.com/davit-runtime/davit/internal/play"
)

// A display shows pulls as they change.
type display interface {
	show(pulls []*imagev1.Pull)
}

// phaseName is what people call a phase: PULL_PHASE_FETCHING is "fetching".
func phaseName(phase fmt.Stringer) string {
	text := phase.String()
	return strings.ToLower(text[strings.LastIndex(text, "_")+1:])
}

func isOver(p *imagev1.Pull) bool {
	return p.Phase == imagev1.PullPhase_PULL_PHASE_DONE || p.Phase == imagev1.PullPhase_PULL_PHASE_FAILED
}

func isDone(l *imagev1.PullLayer) bool { return l.Phase == imagev1.LayerPhase_LAYER_PHASE_DONE }

func amount(bytes int64) string { return play.FormatBytes(uint64(max(bytes, 0))) }

// amounts is "1.2 MiB / 3.4 MiB", or only the first where no total is known.
func amounts(l *imagev1.PullLayer) string {
	if l.TotalBytes <= 0 {
		return amount(l.Bytes)
	}
	return amount(l.Bytes) + " / " + amount(l.TotalBytes)
}

func rate(l *imagev1.PullLayer) string {
	if l.BytesPerSecond <= 0 || isDone(l) {
		return ""
	}
	return amount(l.BytesPerSecond) + "/s"
}

// bars shows each layer under way as a bar; it is for terminals.
type bars struct {
	progress *mpb.Progress
	titled   bool // with a line for each pull
	titles   map[string]*mpb.Bar
	layers   map[[2]string]*layerBar // by pull and digest
	next     int                     // where the next pull's bars stand
	first    map[string]int
}

// A layerBar shows what was last said of its layer.
type layerBar struct {
	bar  *mpb.Bar
	said chan *imagev1.PullLayer // holds one
}

func (l *layerBar) say(layer *imagev1.PullLayer) {
	<-l.said
	l.said <- layer
}

func (l *layerBar) last() *imagev1.PullLayer {
	layer := <-l.said
	l.said <- layer
	return layer
}

func newBars(out io.Writer) *bars {
	return &bars{
		progress: mpb.New(mpb.WithOutput(out), mpb.WithAutoRefresh(), mpb.WithWidth(32), mpb.WithRefreshRate(150*time.Millisecond)),
		titles:   map[string]*mpb.Bar{}, layers: map[[2]string]*layerBar{}, first: map[string]int{}, next: 1,
	}
}

// maxBars is how many layers a pull may have for each to get a place of its own.
const maxBars = 1 << 10

func (b *bars) show(pulls []*imagev1.Pull) {
	for _, p := range pulls {
		if _, known := b.first[p.Id]; !known {
			b.first[p.Id] = b.next
			b.next += maxBars
		}
		if b.titled {
			b.title(p)
		}
		for i, l := range p.Layers {
			b.layer(p, i, l)
		}
	}
}

func (b *bars) title(p *imagev1.Pull) {
	if b.titles[p.Id] == nil && !isOver(p) {
		b.titles[p.Id] = b.progress.New(0, mpb.NopStyle(), mpb.BarPriority(b.first[p.Id]),
			mpb.PrependDecorators(decor.Name(p.Image+" ")), mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_GO)))
	}
	if t := b.titles[p.Id]; t != nil && isOver(p) {
		t.Abort(true)
		delete(b.titles, p.Id)
		fmt.Fprintln(b.progress, ending(p)) // above the bars
	}
}

// ending is the last line about a pull.
func ending(p *imagev1.Pull) string {
	text := fmt.Sprintf("%s %s, %s", p.Image, phaseName(p.Phase), console.Took(p.Began.AsTime()))
	if p.Error != "" {
		text += ": " + console.OneLine(p.Error)
	}
	return text
}

func (b *bars) layer(p *imagev1.Pull, index int, l *imagev1.PullLayer) {
	key := [2]string{p.Id, l.Digest}
	shown := b.layers[key]
	over := isOver(p) || isDone(l)
	if shown == nil {
		if over || l.Phase == imagev1.LayerPhase_LAYER_PHASE_WAITING {
			return
		}
		shown = &layerBar{said: make(chan *imagev1.PullLayer, 1)}
		shown.said <- l
		shown.bar = b.progress.New(l.TotalBytes, mpb.BarStyle().Rbound("]").Lbound("["), mpb.BarPriority(b.first[p.Id]+1+min(index, maxBars-2)),
			mpb.PrependDecorators(decor.Any(func(decor.Statistics) string {
				l := shown.last()
				return fmt.Sprintf("  %s %-11s ", console.Short(l.Digest), phaseName(l.Phase))
			})),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
				l := shown.last()
				return " " + amounts(l) + "  " + rate(l)
			})))
		b.layers[key] = shown
	}
	shown.say(l)
	if over {
		shown.bar.Abort(true)
		return
	}
	if l.TotalBytes > 0 {
		shown.bar.SetCurrent(min(l.Bytes, l.TotalBytes-1)) // full, it would be over
	}
}

// close takes the bars away.
func (b *bars) close() {
	for _, t := range b.titles {
		t.Abort(true)
	}
	for _, l := range b.layers {
		l.bar.Abort(true)
	}
	b.progress.Wait()
}

// lines shows changes as lines: a pull when it begins and ends, a layer when
// its phase changes and now and then in between. When quiet, only layers that
// have come.
type lines struct {
	out   io.Writer
	quiet bool
	seen  map[string]*seenPull
}

type seenPull struct {
	phase  imagev1.PullPhase
	layers map[string]seenLayer
}

type seenLayer struct {
	phase imagev1.LayerPhase
	bytes int64
	at    time.Time
	moved bool // it was seen on its way, not only there already
}

// lineEvery is how often a layer whose phase does not change gets a line.
const lineEvery = time.Second

func (s *lines) show(pulls []*imagev1.Pull) {
	if s.seen == nil {
		s.seen = map[string]*seenPull{}
	}
	for _, p := range pulls {
		seen := s.seen[p.Id]
		if seen == nil {
			seen = &seenPull{layers: map[string]seenLayer{}}
			s.seen[p.Id] = seen
		}
		if p.Phase != seen.phase && !isOver(p) && !s.quiet {
			fmt.Fprintln(s.out, p.Image, phaseName(p.Phase))
		}
		seen.phase = p.Phase
		for _, l := range p.Layers {
			s.layer(p, seen, l)
		}
		if isOver(p) {
			delete(s.seen, p.Id)
			if !s.quiet {
				fmt.Fprintln(s.out, ending(p))
			}
		}
	}
}

func (s *lines) layer(p *imagev1.Pull, pull *seenPull, l *imagev1.PullLayer) {
	seen, known := pull.layers[l.Digest]
	now := time.Now()
	changed := !known || l.Phase != seen.phase
	if !changed && (l.Bytes == seen.bytes || now.Sub(seen.at) < lineEvery) {
		return
	}
	pull.layers[l.Digest] = seenLayer{l.Phase, l.Bytes, now, seen.moved || !isDone(l)}
	switch {
	case s.quiet && isDone(l) && seen.moved:
		fmt.Fprintf(s.out, "  %-10s %s  %s\n", "layer", console.Short(l.Digest), amount(l.TotalBytes))
	case !s.quiet:
		fmt.Fprintf(s.out, "%s %s %s %s\n", p.Image, console.Short(l.Digest), phaseName(l.Phase), strings.TrimSpace(amounts(l)+" "+rate(l)))
	}
}
