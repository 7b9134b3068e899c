package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	imagev1 "github.com/davit-runtime/davit/api/image/v1"
	"github.com/davit-runtime/davit/cmd/davit/console"
)

// pieceBytes is how much of an archive goes into one message.
const pieceBytes = 256 << 10

func (c commands) loadCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "load [-f FILE]",
		Short: "Load images from an archive",
		Long: `Load images from an archive: an OCI image layout as a tar file, or what docker save writes, compressed or not.
They get the names that the archive has for them. No registry is asked.

davitd only. With -o json: the message davit.image.v1.LoadResponse.`,
		Example: "  davit image load -f busybox.tar\n  ssh other davit image save busybox | davit image load",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := c.load(cmd.Context(), file)
			if err != nil {
				return c.Told(cmd.Context(), "load", err)
			}
			if c.JSON() {
				return c.PrintMessage(r)
			}
			for _, i := range r.Images {
				if _, err := fmt.Fprintf(c.Out, "image %s loaded\n", nameOf(i)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "-", "the archive; - is standard input")
	return cmd
}

// nameOf is what to call an image: its names, or its ID.
func nameOf(i *imagev1.LoadedImage) string {
	if len(i.GetNames()) == 0 {
		return console.Short(i.GetId())
	}
	return strings.Join(i.Names, ", ")
}

func (c commands) load(ctx context.Context, file string) (*imagev1.LoadResponse, error) {
	from, size := c.In, int64(0)
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		from, size = f, info.Size()
	} else if isTerminal(from) {
		return nil, errors.New("standard input is a terminal; name the archive by -f")
	}
	from, end := c.moving(from, "load", size)
	defer end()
	// Canceled when it is left early: davitd drops what has come.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.Own().Load(ctx)
	if err != nil {
		return nil, err
	}
	piece := make([]byte, pieceBytes)
	for {
		n, err := io.ReadFull(from, piece)
		if n > 0 {
			// io.EOF: davitd has ended it, and CloseAndRecv says why.
			if err := s.Send(&imagev1.LoadRequest{Data: piece[:n]}); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return s.CloseAndRecv()
}

// moving shows on a terminal how much of r was read, of size bytes if that is
// not 0, until end is called.
func (c commands) moving(r io.Reader, what string, size int64) (_ io.Reader, end func()) {
	if !isTerminal(c.Err) {
		return r, func() {}
	}
	p := mpb.New(mpb.WithOutput(c.Err), mpb.WithWidth(32))
	bar := p.New(size, mpb.BarStyle().Lbound("[").Rbound("]"), mpb.PrependDecorators(decor.Name("  "+what+" ")),
		mpb.AppendDecorators(decor.Any(func(s decor.Statistics) string { return " " + amount(s.Current) })))
	return &counted{r, bar}, func() {
		bar.Abort(true)
		p.Wait()
	}
}

type counted struct {
	io.Reader
	bar *mpb.Bar
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.bar.IncrBy(n)
	return n, err
}

func (c commands) saveCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "save IMAGE... [-f FILE]",
		Short: "Save images as an archive",
		Long: `Save images as an archive, which is an OCI image layout as a tar file and what docker load reads at once. Layers are the
registry's, byte for byte, but not compressed: an image keeps its ID. A FILE appears only when it is whole.

davitd only. With -o json, which needs -f: one object.`,
		Example: "  davit image save busybox:1.36 -f busybox.tar",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.save(cmd.Context(), &imagev1.SaveRequest{Images: args}, file)
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "-", "where to write it; - is standard output")
	return cmd
}

func (c commands) save(ctx context.Context, request *imagev1.SaveRequest, file string) error {
	if file == "-" {
		switch {
		case c.JSON():
			return errors.New("save: -o json needs -f FILE: the archive itself goes to standard output")
		case isTerminal(c.Out):
			return errors.New("save: standard output is a terminal; name a file by -f")
		}
		_, err := c.receive(ctx, request, c.Out)
		return c.Told(ctx, "save", err)
	}
	bytes, err := c.saveFile(ctx, request, file)
	if err != nil {
		return c.Told(ctx, "save", err)
	}
	if c.JSON() {
		return c.PrintJSON(struct {
			File  string `json:"file"`
			Bytes int64  `json:"bytes"`
		}{file, bytes})
	}
	_, err = fmt.Fprintf(c.Out, "%s saved, %s\n", file, amount(bytes))
	return err
}

// saveFile writes beside the file and renames in the end; to what is no file,
// a pipe or a device, it writes directly.
func (c commands) saveFile(ctx context.Context, request *imagev1.SaveRequest, file string) (bytes int64, err error) {
	if info, err := os.Stat(file); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			return 0, err
		}
		bytes, err = c.receive(ctx, request, f)
		return bytes, errors.Join(err, f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	bytes, err = c.receive(ctx, request, f)
	if err == nil {
		err = errors.Join(f.Chmod(0o644), f.Sync())
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, err
	}
	return bytes, os.Rename(f.Name(), file)
}

func (c commands) receive(ctx context.Context, request *imagev1.SaveRequest, to io.Writer) (bytes int64, err error) {
	ctx, cancel := context.WithCancel(ctx) // ends the call if what is written to does
	defer cancel()
	s, err := c.Own().Save(ctx, request)
	if err != nil {
		return 0, err
	}
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return bytes, nil
		}
		if err != nil {
			return bytes, err
		}
		n, err := to.Write(r.Data)
		bytes += int64(n)
		if err != nil {
			return bytes, err
		}
	}
}

func (c commands) importCommand() *cobra.Command {
	request := &imagev1.ImportRequest{}
	cmd := &cobra.Command{
		Use:   "import containerd|cri-o [IMAGE...]",
		Short: "Import images from another runtime's store on this node, without network",
		Long: `Import images from the store of containerd or CRI-O on this node, without network: all of them, or those that are named.
The other runtime need not run, and nothing of it is changed.

davitd only. With -o json: the messages davit.image.v1.ImportResponse, one a line. Exit code 1: one could not be imported.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "containerd":
				request.Store = imagev1.ForeignStore_FOREIGN_STORE_CONTAINERD
			case "cri-o", "crio":
				request.Store = imagev1.ForeignStore_FOREIGN_STORE_CRIO
			default:
				return fmt.Errorf("import: %s is not known; containerd and cri-o are", args[0])
			}
			request.Images = args[1:]
			return c.importImages(cmd.Context(), request)
		},
	}
	cmd.Flags().StringVar(&request.Root, "from", "", "the store's directory (default /var/lib/containerd, /var/lib/containers/storage)")
	cmd.Flags().StringVar(&request.ContainerdNamespace, "namespace", "", "containerd's namespace (default k8s.io)")
	return cmd
}

func (c commands) importImages(ctx context.Context, request *imagev1.ImportRequest) error {
	failed := 0
	s, err := c.Own().Import(ctx, request)
	for err == nil {
		var r *imagev1.ImportResponse
		if r, err = s.Recv(); err == nil {
			err = c.tellImported(r)
			if r.Error != "" {
				failed++
			}
		}
	}
	if !errors.Is(err, io.EOF) {
		return c.Told(ctx, "import", err)
	}
	if failed > 0 {
		return console.ExitCode(1)
	}
	return nil
}

func (c commands) tellImported(r *imagev1.ImportResponse) (err error) {
	switch {
	case c.JSON():
		err = c.PrintLine(r)
	case r.Error != "":
		_, err = fmt.Fprintf(c.Err, "davit: import %s: %s\n", r.Name, console.OneLine(r.Error))
	default:
		_, err = fmt.Fprintf(c.Out, "image %s imported\n", r.Name)
	}
	return err
}
