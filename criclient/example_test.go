package criclient_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/criclient"
	"github.com/davit-runtime/davit/criclient/crifake"
)

func ExampleDial() {
	dir, err := os.MkdirTemp("", "cri")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	runtime := crifake.New()
	socket, err := runtime.Listen(filepath.Join(dir, "cri.sock"), crifake.V1alpha2())
	if err != nil {
		log.Fatal(err)
	}
	defer socket.Close()

	ctx := context.Background()
	c, err := criclient.Dial(ctx, criclient.Options{Runtime: socket.Endpoint()})
	if err != nil {
		log.Fatal(err) // what was tried, what was answered, what to do
	}
	defer c.Close()
	fmt.Println(c.Choice(criclient.RuntimeService).Version)

	runtime.Fail("PullImage", status.Error(codes.Unknown, "RegistryUnavailable: no route to host"))
	_, err = c.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "busybox"}})
	fmt.Println(errors.Is(err, criclient.ErrRegistryUnavailable), status.Convert(err).Message())
	// Output:
	// v1alpha2
	// true RegistryUnavailable: no route to host
}

func ExampleClient_Events() {
	c, err := criclient.New(criclient.Options{Runtime: "unix:///run/davit/davit.sock"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	ctx := context.Background()
	for e, err := range c.Events(ctx) {
		switch {
		case err != nil:
			log.Fatal(err)
		case e.Gap != nil: // what happened before is not known
			pods, err := c.Pods(ctx, nil)
			fmt.Println(len(pods), "pods", err)
		default:
			fmt.Println(e.ContainerId, e.ContainerEventType)
		}
	}
}
