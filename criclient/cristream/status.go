package cristream

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// A status is how a peer says that a session has ended, as far as it is read.
// Kubernetes: k8s.io/apimachinery/pkg/apis/meta/v1, Status.
type status struct {
	Status  string `json:"status"`
	Message string `json:"message"`
	Reason  string `json:"reason"`
	Details struct {
		Causes []struct {
			Reason  string `json:"reason"`
			Message string `json:"message"`
		} `json:"causes"`
	} `json:"details"`
}

// Kubernetes: k8s.io/cri-streaming/pkg/streaming/remotecommand.
const (
	reasonExit = "NonZeroExitCode"
	causeExit  = "ExitCode"
)

// outcome returns how the session ended that text says: nil, an ExitError or
// a RemoteError; or a LostError, if it says nothing.
func outcome(text []byte) error {
	var s status
	if err := json.Unmarshal(text, &s); err != nil {
		return &LostError{fmt.Errorf("the peer's status %.100q: %w", text, err)}
	}
	switch {
	case s.Status == "Success":
		return nil
	case s.Status != "Failure":
		return &LostError{fmt.Errorf("the peer's status is %.100q", s.Status)}
	case s.Reason != reasonExit:
		return &RemoteError{Message: s.text(), Reason: s.Reason}
	}
	for _, cause := range s.Details.Causes {
		if cause.Reason != causeExit {
			continue
		}
		code, err := strconv.ParseUint(cause.Message, 10, 31)
		if err != nil || code == 0 {
			return &LostError{fmt.Errorf("the peer tells of a failure with the exit code %.100q", cause.Message)}
		}
		return &ExitError{int(code)}
	}
	return &LostError{errors.New("the peer tells of a failure without an exit code")}
}

func (s *status) text() string {
	if s.Message == "" {
		return "the session failed, and the server does not say why"
	}
	return s.Message
}

// plainMessage is what the body of a response says: a Status, or plain text.
func plainMessage(text []byte) string {
	var s status
	if json.Unmarshal(text, &s) == nil && s.Message != "" {
		return s.Message
	}
	return strings.TrimSpace(string(text))
}
