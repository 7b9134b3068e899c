package main

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

	"github.com/davit-runtime/davit/internal/play"
)

func (a *app) imagesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "images [IMAGE]",
		Short: "List images",
		Long:  "List images, or only IMAGE. With -o json: the CRI's ListImagesResponse.",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			images, err := a.listImages(cmd.Context(), args...)
			if err != nil {
				return fmt.Errorf("list images: %w", err)
			}
			if a.output == "json" {
				return a.printJSON(&runtimeapi.ListImagesResponse{Images: images})
			}
			return a.printTable("IMAGE ID SIZE", imageRows(images))
		},
	}
}

// listImages returns all images, or the one that is named, by its status: some
// runtimes list all whatever is asked for.
func (a *app) listImages(ctx context.Context, name ...string) ([]*runtimeapi.Image, error) {
	ctx, cancel := a.call(ctx, 0)
	defer cancel()
	if len(name) == 0 {
		return a.client.Images(ctx, nil)
	}
	r, err := a.client.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name[0]}})
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
			rows = append(rows, []string{n, short(i.Id), play.FormatBytes(i.Size)})
		}
	}
	slices.SortFunc(rows, slices.Compare[[]string])
	return rows
}

func (a *app) pullCommand() *cobra.Command {
	var creds string
	cmd := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Pull an image",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			auth, err := a.parseCreds(creds)
			if err != nil {
				return err
			}
			end := newSteps(a.err).step(play.StepImage, args[0])
			r, err := a.client.PullImage(cmd.Context(), &runtimeapi.PullImageRequest{
				Image: &runtimeapi.ImageSpec{Image: args[0]}, Auth: auth,
			})
			if err != nil {
				end("failed")
				return fmt.Errorf("pull %s: %w", args[0], err)
			}
			end("pulled")
			if a.output == "json" {
				return a.printJSON(r)
			}
			_, err = fmt.Fprintln(a.out, r.ImageRef)
			return err
		},
	}
	cmd.Flags().StringVar(&creds, "creds", "", "USER:PASSWORD for the registry; - reads it from standard input, where nobody else sees it")
	return cmd
}

func (a *app) parseCreds(creds string) (*runtimeapi.AuthConfig, error) {
	if creds == "" {
		return nil, nil
	}
	if creds == "-" {
		line, err := bufio.NewReader(a.in).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("--creds: %w", err)
		}
		creds = strings.TrimRight(line, "\r\n")
	}
	user, password, ok := strings.Cut(creds, ":")
	if !ok || user == "" {
		return nil, errors.New("--creds must be USER:PASSWORD")
	}
	a.credsGiven = true
	return &runtimeapi.AuthConfig{Username: user, Password: password}, nil
}

func (a *app) rmiCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rmi IMAGE...",
		Short: "Remove images with all their names",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, image := range args {
				errs = append(errs, a.removeImage(cmd, image))
			}
			return errors.Join(errs...)
		},
	}
}

func (a *app) removeImage(cmd *cobra.Command, image string) error {
	ctx, cancel := a.call(cmd.Context(), 0)
	defer cancel()
	spec := &runtimeapi.ImageSpec{Image: image}
	r, err := a.client.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil {
		return fmt.Errorf("remove image %s: %w", image, err)
	}
	if r.Image == nil { // the CRI's RemoveImage would succeed
		return &notFound{"image", image, "davit images"}
	}
	// By its ID: of a tag some runtimes remove that alone.
	spec = &runtimeapi.ImageSpec{Image: r.Image.Id}
	if _, err := a.client.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec}); err != nil {
		return fmt.Errorf("remove image %s: %w", image, err)
	}
	also := ""
	if more := slices.DeleteFunc(slices.Clone(r.Image.RepoTags), func(tag string) bool { return tag == image }); len(more) > 0 {
		also = ", and with it " + strings.Join(more, ", ")
	}
	_, err = fmt.Fprintf(a.out, "image %s removed%s\n", image, also)
	return err
}
