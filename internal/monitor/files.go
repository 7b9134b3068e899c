package monitor

import (
	"errors"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// SendFiles sends descriptors on a stream of frames, between two of them.
func SendFiles(conn *net.UnixConn, files ...*os.File) error {
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	_, _, err := conn.WriteMsgUnix([]byte{0}, oob, nil)
	return err
}

// ReceiveFiles receives what one SendFiles has sent.
func ReceiveFiles(conn *net.UnixConn) ([]*os.File, error) {
	var mark [1]byte
	oob := make([]byte, unix.CmsgSpace(maxFDs*4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(mark[:], oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return nil, err
	}
	fds, err := rights(oob[:oobn])
	if err != nil {
		return nil, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		CloseAll(fds)
		return nil, errors.Join(errors.New("descriptors were cut short"), unix.EMFILE)
	}
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), "received")
	}
	return files, nil
}
