package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/inside"
	"github.com/davit-runtime/davit/internal/terminal"
)

func (a app) cpCommand() *cobra.Command {
	var container string
	var owners bool
	cmd := &cobra.Command{
		Use:   "cp POD[/CONTAINER]:PATH LOCAL|- | LOCAL|- POD[/CONTAINER]:PATH",
		Short: "Copy files out of a running container, or into it",
		Long: `Copy a file, or a directory with all that is below it, out of a running container or into it. The container needs no tar and no
shell for that, but davit has to be root on the container's node.

As with cp, what goes to a directory that is there goes into it, and SOURCE/. is what is in a directory. - is a tar stream on standard
output or input; one that is read needs a directory to go to. Links are copied as links, but a PATH or LOCAL that is one is followed, never out
of the container. A file that is there is written anew where it is. Devices, pipes and sockets are left out, and named.

Copies belong to the container's root, or to whoever runs davit, and have no setuid or setgid; with -a they keep both, and their owners.
A local path with a colon is written ./a:b.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			fromRef, from, out := cutContainer(args[0])
			toRef, to, in := cutContainer(args[1])
			if out == in {
				return errors.New("one of the two must be POD:PATH, and the other a local path or -")
			}
			tree, err := a.containerTree(cmd.Context(), fromRef+toRef, container)
			if err != nil {
				return err
			}
			defer tree.Close()
			c := copying{app: a, tree: tree, owners: owners}
			if out {
				return interruptible(cmd.Context(), func() error { return c.out(cmd.Context(), from, to) })
			}
			return interruptible(cmd.Context(), func() error { return c.in(cmd.Context(), from, to) })
		},
	}
	cmd.Flags().StringVarP(&container, "container", "c", "", "name of the container, if the pod has several")
	cmd.Flags().BoolVarP(&owners, "archive", "a", false, "keep users, groups, setuid and setgid; users are the container's numbers")
	return cmd
}

// cutContainer cuts POD:PATH. A local path that has a colon begins with a dot or a slash.
func cutContainer(arg string) (ref, path string, inContainer bool) {
	ref, path, inContainer = strings.Cut(arg, ":")
	if !inContainer || strings.HasPrefix(arg, ".") || strings.HasPrefix(arg, "/") {
		return "", arg, false
	}
	return ref, path, true
}

// interruptible waits for do until ctx ends; what do waits for then, as for
// standard input, ends with the program.
func interruptible(ctx context.Context, do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// containerTree returns the root of the container that ref means.
func (a app) containerTree(ctx context.Context, ref, name string) (*inside.Tree, error) {
	c, err := a.findContainer(ctx, ref, name)
	if err != nil {
		return nil, err
	}
	p, err := a.process(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Metadata.GetName(), err)
	}
	defer p.Close()
	return p.Tree()
}

// process returns the first process of a running container.
func (a app) process(ctx context.Context, c *runtimeapi.Container) (*inside.Process, error) {
	if notRunning(c) {
		state := strings.ToLower(strings.TrimPrefix(c.State.String(), "CONTAINER_"))
		return nil, fmt.Errorf("it is %s, and can be reached only while it runs", state)
	}
	r, err := a.containerStatus(ctx, c.Id, true)
	if err != nil {
		return nil, err
	}
	// davitd, containerd and CRI-O tell it here.
	var info struct {
		Pid int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(r.GetInfo()["info"]), &info); err != nil || info.Pid <= 0 {
		return nil, errors.New("the runtime does not tell its process")
	}
	return inside.Find(info.Pid, c.Id)
}

// A copying is one cp under way.
type copying struct {
	app
	tree   *inside.Tree
	owners bool
}

func (c copying) leftOut(name string) {
	fmt.Fprintf(c.Err, "davit: %s is left out: it is neither file, directory nor link\n", name)
}

// out copies what from is in the container.
func (c copying) out(ctx context.Context, from, to string) error {
	mode, err := c.tree.Mode(from)
	if err != nil {
		return err
	}
	if to == "-" {
		if terminal.Of(c.Out) != nil {
			return errors.New("a tar stream is not for a terminal; pass it on or write it to a file")
		}
		return c.tree.Pack(ctx, from, nameOf(from), c.Out, c.leftOut)
	}
	if real, err := filepath.EvalSymlinks(to); err == nil { // a slash in the end stays
		to = real + to[len(strings.TrimRight(to, "/")):]
	}
	dir, name, err := place(from, mode, to, func(path string) (fs.FileMode, error) {
		info, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		return info.Mode(), nil
	})
	if err != nil {
		return err
	}
	local, err := inside.Local(dir)
	if err != nil {
		return err
	}
	defer local.Close()
	return c.pipe(ctx, c.tree, from, name, local, ".")
}

// in copies into the container what from is here.
func (c copying) in(ctx context.Context, from, to string) error {
	if from == "-" {
		if mode, err := c.tree.Mode(to); err != nil || !mode.IsDir() {
			return errors.Join(err, fmt.Errorf("%s: a tar stream needs a directory to go to", to))
		}
		return c.tree.Unpack(ctx, c.In, to, c.owners, c.leftOut)
	}
	real, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	if real, err = filepath.Abs(real); err != nil {
		return err
	}
	info, err := os.Stat(real)
	if err != nil {
		return err
	}
	dir, name, err := place(from, info.Mode(), to, c.tree.Mode)
	if err != nil {
		return err
	}
	local, err := inside.Local(filepath.Dir(real))
	if err != nil {
		return err
	}
	defer local.Close()
	return c.pipe(ctx, local, filepath.Base(real), name, c.tree, dir)
}

// pipe copies what path is in one tree into a directory of the other, as name.
func (c copying) pipe(ctx context.Context, from *inside.Tree, path, name string, to *inside.Tree, dir string) error {
	r, w := io.Pipe()
	go func() { w.CloseWithError(from.Pack(ctx, path, name, w, c.leftOut)) }()
	err := to.Unpack(ctx, r, dir, c.owners, c.leftOut)
	_ = r.CloseWithError(err)
	return err
}

// nameOf is what a copy is called where it goes into a directory: "." if only
// its content is meant.
func nameOf(source string) string {
	if strings.HasSuffix(source, "/.") || source == "." || path.Clean("/"+source) == "/" {
		return "."
	}
	return path.Base(source)
}

// place says into which directory a copy goes and what it is called there, as
// cp(1) has it. Mode returns the error fs.ErrNotExist of what is not there.
func place(source string, mode fs.FileMode, to string, modeOf func(path string) (fs.FileMode, error)) (dir, name string, err error) {
	if !mode.IsDir() && !mode.IsRegular() {
		return "", "", fmt.Errorf("%s is neither file nor directory", source)
	}
	there, err := modeOf(to)
	parent, base := path.Split(strings.TrimRight(to, "/"))
	switch {
	case err == nil && there.IsDir():
		return to, nameOf(source), nil
	case err == nil && !there.IsRegular():
		return "", "", fmt.Errorf("%s is neither file nor directory; - writes a tar stream to standard output", to)
	case err == nil && mode.IsDir():
		return "", "", fmt.Errorf("%s is a file, and %s a directory", to, source)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", "", err
	case strings.HasSuffix(to, "/") && !mode.IsDir():
		return "", "", fmt.Errorf("there is no directory %s", to)
	}
	if parent == "" {
		parent = "."
	}
	if above, err := modeOf(parent); err != nil || !above.IsDir() {
		return "", "", fmt.Errorf("there is no directory %s", parent)
	}
	return parent, base, nil
}
