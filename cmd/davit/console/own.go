package console

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	callv1 "github.com/davit-runtime/davit/api/call/v1"
	imagev1 "github.com/davit-runtime/davit/api/image/v1"
	"github.com/davit-runtime/davit/criclient"
)

// Own returns davit's own service, at the endpoint for images. A runtime that
// is not davit answers its calls by an error that IsNotDavit knows.
func (c *Console) Own() imagev1.ImagesClient {
	return imagev1.NewImagesClient(c.Client.Connection(criclient.ImageService))
}

// Calls returns davit's own service that tells of calls.
func (c *Console) Calls() callv1.CallsClient {
	return callv1.NewCallsClient(c.Client.Connection(criclient.RuntimeService))
}

// NotDavit is that a runtime does not have davit's own service.
type NotDavit struct {
	Endpoint string
	Name     string // and version; empty if it does not tell
}

func (e *NotDavit) Error() string {
	switch {
	case strings.HasPrefix(e.Name, "davit "):
		return fmt.Sprintf("this is not served at %s: %s is of another version than this program", e.Endpoint, e.Name)
	case e.Name != "":
		return fmt.Sprintf("this needs davitd, and the runtime at %s is %s", e.Endpoint, e.Name)
	}
	return fmt.Sprintf("this needs davitd, and the runtime at %s is another", e.Endpoint)
}

// Told returns err, of a call of davit's own service for doing what is named,
// or a *NotDavit if there is no such service.
func (c *Console) Told(ctx context.Context, what string, err error) error {
	if err == nil {
		return nil
	}
	if !NoService(err) {
		return fmt.Errorf("%s: %w", what, err)
	}
	none := &NotDavit{Endpoint: c.Client.ImageEndpoint()}
	ctx, cancel := c.Call(ctx, 0)
	defer cancel()
	if v, err := c.Client.CheckVersion(ctx); err == nil {
		none.Name = v.RuntimeName + " " + v.RuntimeVersion
	}
	return fmt.Errorf("%s: %w", what, none)
}

// NoService reports whether err says that the runtime lacks a whole service,
// or a method of it. davitd itself says in other words what it cannot do.
func NoService(err error) bool {
	var e *criclient.Error
	return errors.As(err, &e) && status.Code(err) == codes.Unimplemented &&
		(strings.HasPrefix(e.Message(), "unknown service ") || strings.HasPrefix(e.Message(), "unknown method ") || strings.HasPrefix(e.Message(), "method "))
}
