package namespace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/fault"
)

// loopbacks are where a program that serves "localhost" may be found, in the
// order they are tried.
var loopbacks = []struct {
	family  int
	address func(port uint16) unix.Sockaddr
}{
	{unix.AF_INET, func(port uint16) unix.Sockaddr {
		return &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}}
	}},
	{unix.AF_INET6, func(port uint16) unix.Sockaddr {
		return &unix.SockaddrInet6{Port: int(port), Addr: [16]byte{15: 1}}
	}},
}

// Dial connects by TCP to a port on the loopback interface of the network
// namespace pinned at netns; empty is the caller's own. It tries IPv4, then
// IPv6.
//
// It returns NotFound without such a namespace, and Unavailable, naming the
// port, if nothing listens there.
func Dial(ctx context.Context, netns string, port uint16) (net.Conn, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var first error
	for _, l := range loopbacks {
		s, err := socket(netns, l.family)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		conn, err := connect(ctx, s, l.address(port))
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if first == nil {
			first = err
		}
	}
	return nil, fault.New(fault.Unavailable, "", "nothing listens on port %d of localhost: %w", port, first)
}

// socket makes a TCP socket in a network namespace, where it stays. Connecting
// it needs no thread there: a connection that takes its time blocks none.
func socket(netns string, family int) (*os.File, error) {
	const op = "namespace.Dial"
	var fd int
	open := func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
		return err
	}
	var err error
	if netns == "" {
		err = open()
	} else {
		ns, openErr := os.Open(netns)
		if openErr != nil {
			return nil, fault.New(fault.NotFound, op, "%w", openErr)
		}
		defer func() { _ = ns.Close() }()
		err = onThread(func() error {
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fault.New(fault.NotFound, op, "join the network namespace %s: %w", netns, err)
			}
			return open()
		})
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "tcp socket"), nil
}

// connect connects s, which it takes over, and waits for that within ctx.
func connect(ctx context.Context, s *os.File, to unix.Sockaddr) (net.Conn, error) {
	defer func() { _ = s.Close() }()
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	// kernel: connect(2), EINPROGRESS: it is done once the socket can be written to.
	begun := false
	var result error
	err = raw.Write(func(fd uintptr) bool {
		if !begun {
			begun = true
			result = unix.Connect(int(fd), to)
			return !errors.Is(result, unix.EINPROGRESS)
		}
		var code int
		if code, result = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); result == nil && code != 0 {
			result = unix.Errno(code)
		}
		if result != nil {
			return true
		}
		// The poller may have told of the socket as it was before.
		_, err := unix.Getpeername(int(fd))
		return err == nil
	})
	if err = errors.Join(err, result); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return net.FileConn(s)
}
