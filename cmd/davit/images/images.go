package images

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/cmd/davit/console"
	"github.com/davit-runtime/davit/internal/play"
)

func (c commands) imagesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "images [IMAGE]",
		Short: "List images",
		Long:  "List images, or only IMAGE. With -o json: the CRI's ListImagesResponse.",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			images, err := List(cmd.Context(), c.Console, args...)
			if err != nil {
				return fmt.Errorf("list images: %w", err)
			}
			if c.JSON() {
				return c.PrintMessage(&runtimeapi.ListImagesResponse{Images: images})
			}
			return c.PrintTable("IMAGE ID SIZE", imageRows(images))
		},
	}
}

// List returns all images, or the one that is named, by its status: some
// runtimes list all whatever is asked for.
func List(ctx context.Context, c *console.Console, name ...string) ([]*runtimeapi.Image, error) {
	ctx, cancel := c.Call(ctx, 0)
	defer cancel()
	if len(name) == 0 {
		return c.Client.Images(ctx, nil)
	}
	r, err := c.Client.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name[0]}})
	if r.GetImage() == nil {
		return nil, err
	}
	return []*runtimeapi.Image{r.Image}, err
}

// imageRows has a row for each tag, and for an image without one its digest.
func imageRows(images []*runtimeapi.Image) [][]string {
	var rows [][]string
	for _, i := range images {
		names := i.RepoTags
		if len(names) == 0 {
			names = i.RepoDigests
		}
		if len(names) == 0 {
			names = []string{"-"}
		}
		for _, n := range names {
			rows = append(rows, []string{n, console.Short(i.Id), play.FormatBytes(i.Size)})
		}
	}
	slices.SortFunc(rows, slices.Compare[[]string])
	return rows
}

func (c commands) pullCommand() *cobra.Command {
	var creds string
	cmd := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Pull an image",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			auth, err := c.parseCreds(creds)
			if err != nil {
				return err
			}
			end := NewSteps(c.Console, c.Err).Step(play.StepPull, args[0])
			r, err := c.Client.PullImage(cmd.Context(), &runtimeapi.PullImageRequest{
				Image: &runtimeapi.ImageSpec{Image: args[0]}, Auth: auth,
			})
			if err != nil {
				end(play.Failed)
				return fmt.Errorf("pull %s: %w", args[0], err)
			}
			end("pulled")
			if c.JSON() {
				return c.PrintMessage(r)
			}
			_, err = fmt.Fprintln(c.Out, r.ImageRef)
			return err
		},
	}
	cmd.Flags().StringVar(&creds, "creds", "", "USER:PASSWORD for the registry; - reads it from standard input, where nobody else sees it")
	return cmd
}

func (c commands) parseCreds(creds string) (*runtimeapi.AuthConfig, error) {
	if creds == "" {
		return nil, nil
	}
	if creds == "-" {
		line, err := bufio.NewReader(c.In).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("--creds: %w", err)
		}
		creds = strings.TrimRight(line, "\r\n")
	}
	user, password, ok := strings.Cut(creds, ":")
	if !ok || user == "" {
		return nil, errors.New("--creds must be USER:PASSWORD")
	}
	c.CredsGiven = true
	return &runtimeapi.AuthConfig{Username: user, Password: password}, nil
}

func (c commands) rmiCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rmi IMAGE...",
		Short: "Remove images with all their names",
		Long:  "Remove images with all their names. With -o json: the CRI's ListImagesResponse of those that were removed, as they were.",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			removed := &runtimeapi.ListImagesResponse{}
			for _, image := range args {
				i, err := c.removeImage(cmd, image)
				errs = append(errs, err)
				if err == nil {
					removed.Images = append(removed.Images, i)
				}
			}
			if c.JSON() {
				errs = append(errs, c.PrintMessage(removed))
			}
			return errors.Join(errs...)
		},
	}
}

func (c commands) removeImage(cmd *cobra.Command, image string) (*runtimeapi.Image, error) {
	ctx, cancel := c.Call(cmd.Context(), 0)
	defer cancel()
	spec := &runtimeapi.ImageSpec{Image: image}
	r, err := c.Client.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil {
		return nil, fmt.Errorf("remove image %s: %w", image, err)
	}
	if r.Image == nil { // the CRI's RemoveImage would succeed
		return nil, &console.NotFound{What: "image", Ref: image, Hint: "davit images"}
	}
	// By its ID: of a tag some runtimes remove that alone.
	spec = &runtimeapi.ImageSpec{Image: r.Image.Id}
	if _, err := c.Client.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec}); err != nil {
		return nil, fmt.Errorf("remove image %s: %w", image, err)
	}
	if c.JSON() {
		return r.Image, nil
	}
	also := ""
	if more := slices.DeleteFunc(slices.Clone(r.Image.RepoTags), func(tag string) bool { return tag == image }); len(more) > 0 {
		also = ", and with it " + strings.Join(more, ", ")
	}
	_, err = fmt.Fprintf(c.Out, "image %s removed%s\n", image, also)
	return r.Image, err
}
