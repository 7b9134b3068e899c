package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	imagev1 "github.com/davit-runtime/davit/api/image/v1"
	"github.com/davit-runtime/davit/cmd/davit/console"
)

func (c commands) dfCommand() *cobra.Command {
	var layers bool
	cmd := &cobra.Command{
		Use:   "df",
		Short: "Show what takes how much of the disk: images, containers, the rest",
		Long: `Show what takes how much of the disk below davitd's directory of images. What several images share counts once in the sum:
SHARED is what would stay if the image were removed. Everything but layers is counted
when it is asked for.

davitd only. With -o json: the message davit.image.v1.DiskUsageResponse.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := c.Call(cmd.Context(), 0)
			defer cancel()
			r, err := c.Own().DiskUsage(ctx, &imagev1.DiskUsageRequest{})
			if err != nil {
				return c.Told(ctx, "df", err)
			}
			if c.JSON() {
				return c.PrintMessage(r)
			}
			return c.printUsage(r, layers)
		},
	}
	cmd.Flags().BoolVar(&layers, "layers", false, "list the layers, too: each is kept as a file (erofs), mounted while it is used, or as a directory")
	return cmd
}

func (c commands) printUsage(r *imagev1.DiskUsageResponse, layers bool) error {
	var rows [][]string
	for _, i := range r.Images {
		name := console.Short(i.Id)
		if len(i.Names) > 0 {
			name = i.Names[0]
		}
		rows = append(rows, []string{name, amount(i.Bytes), amount(i.SharedBytes), fmt.Sprint(i.Containers), yes(i.Pinned)})
	}
	slices.SortFunc(rows, slices.Compare)
	if err := c.PrintTable("IMAGE SIZE SHARED CONTAINERS PINNED", rows); err != nil {
		return err
	}
	if layers {
		if err := c.printLayers(r.Layers); err != nil {
			return err
		}
	}
	var ofLayers, ofContainers int64
	for _, l := range r.Layers {
		ofLayers += l.Bytes
	}
	for _, w := range r.Writable {
		ofContainers += w.Bytes
	}
	sums := [][]string{
		{fmt.Sprintf("%d layers of %d images", len(r.Layers), len(r.Images)), amount(ofLayers)},
		{fmt.Sprintf("%d writable layers", len(r.Writable)), amount(ofContainers)},
	}
	sum := ofLayers + ofContainers
	for _, o := range r.Other {
		sums = append(sums, []string{o.What, amount(o.Bytes)})
		sum += o.Bytes
	}
	sums = append(sums, []string{"together", amount(sum)})
	if fs := r.FileSystem; fs != nil {
		sums = append(sums, []string{"free in " + fs.Path, amount(fs.FreeBytes) + " of " + amount(fs.TotalBytes)})
	}
	fmt.Fprintln(c.Out)
	return c.PrintTable("WHAT SIZE", sums)
}

func (c commands) printLayers(layers []*imagev1.LayerUsage) error {
	layers = slices.SortedStableFunc(slices.Values(layers), func(a, b *imagev1.LayerUsage) int { return cmp.Compare(b.Bytes, a.Bytes) })
	var rows [][]string
	for _, l := range layers {
		rows = append(rows, []string{console.Short(l.Id), amount(l.Bytes), fmt.Sprint(l.Images), cmp.Or(l.Kind, "-"), yes(l.Mounted)})
	}
	fmt.Fprintln(c.Out)
	return c.PrintTable("LAYER SIZE IMAGES KEPT MOUNTED", rows)
}

// yes is for columns where it is the exception.
func yes(is bool) string {
	if is {
		return "yes"
	}
	return "-"
}

func (c commands) checkCommand() *cobra.Command {
	request := &imagev1.CheckRequest{}
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Read every layer and compare it with what was pulled; exit with 1 if one is damaged",
		Long: `Read every layer and compare it with what was pulled. Damaged ones are named, with the images that need them; davitd
takes these images out of its lists at once, so that the next pod that needs one pulls it again, and tries to fetch the layers itself.

davitd only. With -o json: the messages davit.image.v1.CheckResponse, one a line. Exit code 1: something is damaged.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.check(cmd.Context(), request)
		},
	}
	cmd.Flags().BoolVar(&request.Quick, "quick", false, "do not read layers, look at their sizes, ends and superblocks only")
	return cmd
}

func (c commands) check(ctx context.Context, request *imagev1.CheckRequest) error {
	show, end := c.checking()
	var summary *imagev1.CheckSummary
	findings := 0
	s, err := c.Own().Check(ctx, request)
	for err == nil {
		var r *imagev1.CheckResponse
		if r, err = s.Recv(); err != nil {
			break
		}
		switch {
		case c.JSON():
			err = c.PrintLine(r)
		case r.GetProgress() != nil:
			show(r.GetProgress())
		case r.GetFinding() != nil:
			_, err = fmt.Fprintln(c.Out, findingText(r.GetFinding()))
		}
		if r.GetFinding() != nil {
			findings++
		}
		if r.GetSummary() != nil {
			summary = r.GetSummary()
		}
	}
	end()
	if errors.Is(err, io.EOF) {
		if err = nil; summary == nil {
			err = errors.New("it was not finished")
		}
	}
	if err != nil {
		return c.Told(ctx, "check", err)
	}
	if !c.JSON() {
		fmt.Fprintf(c.Out, "%d layers of %d images checked, %s read in %.2f s: %d damaged\n",
			summary.Layers, summary.Images, amount(summary.Bytes), summary.Took.AsDuration().Seconds(), summary.Damaged)
	}
	if findings > 0 || summary.Damaged > 0 {
		return console.ExitCode(1)
	}
	return nil
}

// checking shows progress on a terminal until end is called.
func (c commands) checking() (show func(*imagev1.CheckProgress), end func()) {
	if !isTerminal(c.Err) || c.JSON() {
		return func(*imagev1.CheckProgress) {}, func() {}
	}
	var bar *mpb.Bar
	p := mpb.New(mpb.WithOutput(c.Err), mpb.WithWidth(32))
	show = func(now *imagev1.CheckProgress) {
		if bar == nil {
			bar = p.New(now.TotalBytes, mpb.BarStyle().Lbound("[").Rbound("]"), mpb.PrependDecorators(decor.Name("  check ")),
				mpb.AppendDecorators(decor.Any(func(s decor.Statistics) string { return " " + amount(s.Current) + " / " + amount(s.Total) })))
		}
		bar.SetCurrent(min(now.Bytes, now.TotalBytes-1))
	}
	return show, func() {
		if bar != nil {
			bar.Abort(true)
		}
		p.Wait()
	}
}

func findingText(f *imagev1.CheckFinding) string {
	text := fmt.Sprintf("damaged  %s: %s", f.Subject, console.OneLine(f.Problem))
	if len(f.Images) > 0 {
		text += "; of " + strings.Join(f.Images, ", ")
	}
	return console.JoinNonEmpty("; ", text, f.Done)
}
