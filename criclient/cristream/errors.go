package cristream

import (
	"fmt"
	"net/http"
)

// An ExitError is a command that ended with an exit code other than 0.
type ExitError struct {
	Code int // 128+n after signal n, with most runtimes
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("the command ended with exit code %d", e.Code)
}

// A RemoteError is what the peer says of a session that it could not begin or
// go on with: a command that is not in the container, a port on which nobody
// listens.
type RemoteError struct {
	Message string // the peer's own words
	Reason  string // as in Kubernetes' Status, "InternalError" mostly; empty with port-forward
}

func (e *RemoteError) Error() string { return e.Message }

// An UpgradeError is a peer that answered, and did not begin a session: the
// URL was used before or is too old, credentials are missing, or it does not
// speak the protocol. Nothing was run.
type UpgradeError struct {
	Protocol Protocol // WebSocket or SPDY
	Status   int      // of HTTP; 101 if the peer agreed to something else than was asked for
	Message  string   // what the peer said
}

func (e *UpgradeError) Error() string {
	status := fmt.Sprintf("%d %s", e.Status, http.StatusText(e.Status))
	if e.Message == "" {
		return fmt.Sprintf("no session by %v: the server answered %s", e.Protocol, status)
	}
	return fmt.Sprintf("no session by %v: the server answered %s: %s", e.Protocol, status, e.Message)
}

// A LostError is a connection that ended, or a peer that broke the protocol,
// before it was told how the session ended. A command may still run.
type LostError struct {
	Err error // never nil
}

func (e *LostError) Error() string { return "the connection was lost: " + e.Err.Error() }
func (e *LostError) Unwrap() error { return e.Err }
