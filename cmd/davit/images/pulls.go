package images

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	imagev1 "github.com/davit-runtime/davit/api/image/v1"
	"github.com/davit-runtime/davit/cmd/davit/console"
)

func (c commands) pullsCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "pulls [IMAGE]",
		Short: "Show the pulls under way, also those that a kubelet asked for",
		Long: `Show the pulls under way, also those that a kubelet asked for, with each layer: its phase, how much of it has come,
and how fast. With IMAGE, only pulls of that. With -w, go on until interrupted.

davitd only. With -o json: the messages of davit.image.v1.Images.WatchPulls; with -w one a line.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &imagev1.WatchPullsRequest{Once: !watch}
			if len(args) > 0 {
				request.Image = args[0]
			}
			if watch {
				return c.watchPulls(cmd.Context(), request)
			}
			return c.listPulls(cmd.Context(), request)
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on, and show what changes")
	return cmd
}

func (c commands) listPulls(ctx context.Context, request *imagev1.WatchPullsRequest) error {
	ctx, cancel := c.Call(ctx, 0)
	defer cancel()
	r := &imagev1.WatchPullsResponse{}
	s, err := c.Own().WatchPulls(ctx, request)
	for err == nil { // a long answer comes in parts
		var part *imagev1.WatchPullsResponse
		if part, err = s.Recv(); err == nil {
			r.Pulls = append(r.Pulls, part.Pulls...)
		}
	}
	if !errors.Is(err, io.EOF) {
		return c.Told(ctx, "pulls", err)
	}
	if c.JSON() {
		return c.PrintMessage(r)
	}
	var rows [][]string
	for _, p := range r.Pulls {
		rows = append(rows, pullRows(p)...)
	}
	return c.PrintTable("IMAGE AGE LAYER PHASE BYTES TOTAL RATE", rows)
}

// pullRows has a row for each layer, or for the pull while none is known.
func pullRows(p *imagev1.Pull) (rows [][]string) {
	age := console.Age(p.Began.AsTime().UnixNano())
	for _, l := range p.Layers {
		total := "-"
		if l.TotalBytes > 0 {
			total = amount(l.TotalBytes)
		}
		rows = append(rows, []string{p.Image, age, console.Short(l.Digest), phaseName(l.Phase), amount(l.Bytes), total, console.Dash(rate(l))})
	}
	if len(rows) == 0 {
		rows = append(rows, []string{p.Image, age, "-", phaseName(p.Phase), "-", "-", "-"})
	}
	return rows
}

func (c commands) watchPulls(ctx context.Context, request *imagev1.WatchPullsRequest) error {
	s, err := c.Own().WatchPulls(ctx, request)
	if err != nil {
		return c.Told(ctx, "pulls", err)
	}
	var d display = &lines{out: c.Out}
	switch {
	case c.JSON():
		d = jsonLines(c)
	case isTerminal(c.Out):
		b := newBars(c.Out)
		defer b.close()
		b.titled = true
		d = b
	}
	err = showAll(s, d)
	if errors.Is(err, io.EOF) {
		err = errors.New("the runtime has ended it: it is stopping")
	}
	return c.Told(ctx, "pulls", err)
}

func showAll(s grpc.ServerStreamingClient[imagev1.WatchPullsResponse], d display) error {
	for {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		d.show(r.Pulls)
	}
}

// jsonLines prints each answer as a line.
type jsonLines struct{ *console.Console }

func (j jsonLines) show(pulls []*imagev1.Pull) {
	_ = j.PrintLine(&imagev1.WatchPullsResponse{Pulls: pulls}) // a reader that has gone ends davit by SIGPIPE
}

// lastWord is how long the last word about a pull that has ended is waited for.
const lastWord = time.Second

// follow shows the pulls of an image until stop is called, which waits for the
// last word: not of a pull that failed before it became one. A runtime that
// does not tell of pulls is no fault here.
func (c commands) follow(image string, d display) (stop func(failed bool)) {
	ctx, cancel := context.WithCancel(context.Background())
	u, done := &untilOver{display: d, began: make(chan struct{}), over: make(chan struct{})}, make(chan struct{})
	go func() {
		defer close(done)
		if s, err := c.Own().WatchPulls(ctx, &imagev1.WatchPullsRequest{Image: image}); err == nil {
			_ = showAll(s, u)
		}
	}()
	return func(failed bool) {
		patience := lastWord
		select {
		case <-u.began:
		default:
			if failed {
				patience = 0
			}
		}
		select {
		case <-u.over:
		case <-done:
		case <-time.After(patience):
		}
		cancel()
		<-done
	}
}

// untilOver closes began once a pull was shown, and over once one is.
type untilOver struct {
	display
	began, over chan struct{}
}

func (u *untilOver) show(pulls []*imagev1.Pull) {
	u.display.show(pulls)
	if len(pulls) > 0 {
		closeOnce(u.began)
	}
	if slices.ContainsFunc(pulls, isOver) {
		closeOnce(u.over)
	}
}

// closeOnce is for one goroutine.
func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}
