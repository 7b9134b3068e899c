package cristream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// The channels of a session, the first byte of each message.
// Kubernetes: k8s.io/apimachinery/pkg/util/remotecommand.
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelStatus
	channelResize
	channelClose = 255 // the next byte is the channel that has ended
)

const (
	bufferBytes = 32<<10 + 1
	closeWait   = time.Second // for word to the peer that the session ends
)

func (s *session) overWebSocket(l *link) error {
	var writing sync.Mutex
	input, sizes := &channel{l.ws, &writing, channelStdin}, &channel{l.ws, &writing, channelResize}
	closeInput := func() error { return nil } // in v4, there is no way
	if l.sub == sessionV5 {
		closeInput = func() error { return input.message(channelClose, []byte{channelStdin}) }
	}
	s.send(input, closeInput, sizes)
	said, err := s.receive(l.ws)
	// While a message is being written, this waits for the other's end in vain.
	_ = l.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(closeWait))
	_ = l.raw.Close()
	if err == nil {
		err = l.raw.lost()
	}
	return s.ended(said, err)
}

// receive passes on what comes until no more does, and returns the status. Its
// error is a breach of the protocol.
func (s *session) receive(ws *websocket.Conn) (said []byte, err error) {
	var text bytes.Buffer
	to := map[byte]io.Writer{channelStdout: s.stdout(), channelStderr: s.stderr(), channelStatus: limited{&text}}
	for {
		kind, message, err := ws.NextReader()
		if err != nil {
			return text.Bytes(), breach(err)
		}
		if kind != websocket.BinaryMessage {
			return text.Bytes(), &LostError{errText}
		}
		var number [1]byte
		if _, err := io.ReadFull(message, number[:]); err == io.EOF {
			continue // an empty message says nothing
		} else if err != nil {
			return text.Bytes(), breach(err)
		}
		sink, known := to[number[0]]
		if !known {
			sink = io.Discard
		}
		if _, err := io.Copy(sink, message); err == errTooLong {
			return nil, &LostError{err}
		} else if err != nil {
			return text.Bytes(), breach(err)
		}
	}
}

// breach is err if the peer said what cannot be understood; nil if it ended
// the connection.
func breach(err error) error {
	var closed *websocket.CloseError
	switch {
	case errors.As(err, &closed) && closed.Code == websocket.CloseNormalClosure:
		return nil
	case errors.As(err, &closed) && closed.Text != "":
		return &LostError{fmt.Errorf("the peer closed it: %s", closed.Text)}
	}
	return &LostError{err}
}

var errText = errors.New("the peer sent a message of text, not of bytes")

// errTooLong is a status that is longer than one can be.
var errTooLong = fmt.Errorf("the peer's status has more than %d bytes", maxMessageBytes)

// limited takes as many bytes as a status may have.
type limited struct{ text *bytes.Buffer }

func (l limited) Write(p []byte) (int, error) {
	if l.text.Len()+len(p) > maxMessageBytes {
		return 0, errTooLong
	}
	return l.text.Write(p)
}

// A channel writes to one channel of a session.
type channel struct {
	ws      *websocket.Conn
	writing *sync.Mutex // of ws
	number  byte
}

func (c *channel) Write(p []byte) (int, error) {
	if err := c.message(c.number, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *channel) message(number byte, p []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	w, err := c.ws.NextWriter(websocket.BinaryMessage)
	if err != nil {
		return err
	}
	_, err = w.Write([]byte{number})
	if err == nil {
		_, err = w.Write(p)
	}
	return errors.Join(err, w.Close())
}
