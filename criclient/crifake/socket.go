package crifake

import (
	"errors"
	"net"
	"os"
	"slices"
	"sync"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/criclient"
)

// Serves says which versions of each service a socket has. The zero Serves is
// a gRPC server without the CRI.
type Serves struct {
	Runtime, Image []criclient.Version
	// Own adds a runtime's own services, if it is set.
	Own func(grpc.ServiceRegistrar)
}

// V1 is what runtimes of today serve.
func V1() Serves { return serves(criclient.V1) }

// V1alpha2 is what runtimes before 2022 served.
func V1alpha2() Serves { return serves(criclient.V1alpha2) }

// Both is what runtimes in between served, and davit does.
func Both() Serves { return serves(criclient.V1, criclient.V1alpha2) }

func serves(v ...criclient.Version) Serves { return Serves{Runtime: v, Image: v} }

// A Socket is one that a Runtime answers on.
type Socket struct {
	runtime *Runtime
	path    string

	mu     sync.Mutex
	server *grpc.Server // nil while it is away
	done   chan error
}

// Listen answers at path, which must be free; a socket that is there is
// replaced, as by runtimes that come back.
func (r *Runtime) Listen(path string, what Serves) (*Socket, error) {
	s := &Socket{runtime: r, path: path}
	return s, s.Return(what)
}

// Endpoint is unix:///path.
func (s *Socket) Endpoint() string { return "unix://" + s.path }

// Path is the socket's file.
func (s *Socket) Path() string { return s.path }

// Return listens again, with the versions given, after Vanish or Crash. It
// fails if the socket is there still.
func (s *Socket) Return(what Serves) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server != nil {
		return errors.New("the socket is there already")
	}
	if info, err := os.Stat(s.path); err == nil && info.Mode().Type() == os.ModeSocket {
		_ = os.Remove(s.path)
	}
	l, err := net.Listen("unix", s.path)
	if err != nil {
		return err
	}
	// What Crash leaves behind is for Vanish to remove.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	s.server = grpc.NewServer(grpc.UnaryInterceptor(s.runtime.unary), grpc.StreamInterceptor(s.runtime.stream),
		grpc.WaitForHandlers(true), grpc.MaxRecvMsgSize(maxMessageBytes))
	for _, v := range what.Runtime {
		register(s.server, v, criclient.RuntimeService, runtimeapi.RuntimeService_ServiceDesc, runtimeService{Runtime: s.runtime})
	}
	for _, v := range what.Image {
		register(s.server, v, criclient.ImageService, runtimeapi.ImageService_ServiceDesc, imageService{Runtime: s.runtime})
	}
	if what.Own != nil {
		what.Own(s.server)
	}
	s.done = make(chan error, 1)
	go func(g *grpc.Server, done chan<- error) { done <- g.Serve(l) }(s.server, s.done)
	return nil
}

const maxMessageBytes = 16 << 20

// register serves d under the name it has in version v, with the methods that
// v has.
func register(g *grpc.Server, v criclient.Version, name criclient.Service, d grpc.ServiceDesc, handler any) {
	d.ServiceName = "runtime." + string(v) + "." + string(name)
	d.Methods = slices.DeleteFunc(slices.Clone(d.Methods), func(m grpc.MethodDesc) bool { return !v.Has(name, m.MethodName) })
	d.Streams = slices.DeleteFunc(slices.Clone(d.Streams), func(m grpc.StreamDesc) bool { return !v.Has(name, m.StreamName) })
	g.RegisterService(&d, handler)
}

// Crash cuts all connections, as kill -9 does; the socket's file stays.
func (s *Socket) Crash() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		return
	}
	s.server.Stop()
	<-s.done
	s.server = nil
}

// Vanish cuts all connections and removes the file.
func (s *Socket) Vanish() {
	s.Crash()
	_ = os.Remove(s.path)
}

// Close is Vanish.
func (s *Socket) Close() { s.Vanish() }

// Up reports whether the socket answers.
func (s *Socket) Up() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.server != nil
}
