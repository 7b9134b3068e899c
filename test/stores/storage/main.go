// Command storage copies images from a registry into a store of
// containers/storage, by the library by which CRI-O, Podman and skopeo do it.
package main

import (
	"context"
	"fmt"
	"os"

	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/signature"
	imagestorage "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage"
	"go.podman.io/storage/pkg/reexec"
)

func main() {
	if reexec.Init() {
		return
	}
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "storage DIRECTORY IMAGE...: copy images of registries without TLS into the store in DIRECTORY/root")
		os.Exit(2)
	}
	if err := fill(context.Background(), os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "storage:", err)
		os.Exit(1)
	}
}

func fill(ctx context.Context, dir string, images []string) (err error) {
	store, err := storage.GetStore(storage.StoreOptions{GraphRoot: dir + "/root", RunRoot: dir + "/run", GraphDriverName: "overlay"})
	if err != nil {
		return err
	}
	defer func() {
		if _, shut := store.Shutdown(true); err == nil {
			err = shut
		}
	}()
	policy, err := signature.NewPolicyContext(&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
	if err != nil {
		return err
	}
	defer policy.Destroy()
	plain := &types.SystemContext{DockerInsecureSkipTLSVerify: types.OptionalBoolTrue, SystemRegistriesConfPath: "/dev/null", SystemRegistriesConfDirPath: "/var/empty"}
	for _, name := range images {
		from, err := docker.ParseReference("//" + name)
		if err != nil {
			return err
		}
		to, err := imagestorage.Transport.ParseStoreReference(store, name)
		if err != nil {
			return err
		}
		if _, err := copy.Image(ctx, policy, to, from, &copy.Options{SourceCtx: plain, DestinationCtx: plain}); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
