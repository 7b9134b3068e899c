package server

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/monitor"
	"github.com/davit-runtime/davit/internal/monitor/stdio"
)

// A phase is how far a container has come. Its order matters.
type phase int

const (
	creating phase = iota // half made: of no use to a successor
	created
	starting // `start` was run, whether it got through is not known
	started
	complete // ended, and the log is written
)

// A record is a container's container.json: what a successor must know.
type record struct {
	Container monitor.Container `json:"container"`
	Phase     phase             `json:"phase"`
	Pid       int               `json:"pid"`
	Holder    bool              `json:"holder,omitempty"`
	Throwaway bool              `json:"throwaway,omitempty"` // of seccomp; removed when found
	Killed    bool              `json:"killed,omitempty"`    // davit sent SIGKILL
	OOMKills  int               `json:"oom_kills,omitempty"`
	OOMOthers *int              `json:"oom_others,omitempty"` // kills above that are known: earlier ones, those of others, and OOMKills; nil: not counted
	OOM       *monitor.OOM      `json:"oom,omitempty"`        // why, the last time
	InputOver bool              `json:"input_over,omitempty"` // StdinOnce, and once has been
	Exit      *monitor.Exit     `json:"exit,omitempty"`       // of a complete one
}

// A container is one container or holder.
type container struct {
	s   *server
	id  string
	dir string

	// op is held by one of create, start, remove; gone is guarded by it.
	op        sync.Mutex
	gone      bool
	inherited bool // from the monitor before

	mu       sync.Mutex // guards what follows; taken after op and server.mu
	rec      record
	io       *stdio.Streams
	exitSeq  uint64 // 0: not announced
	reported time.Time
	made     chan struct{} // closed when create is through, or has given up
	ended    chan struct{} // closed when the keeper has said that it ended
	complete chan struct{} // closed when the log is complete and the exit known
}

func (s *server) newContainer(id string) *container {
	return &container{
		s: s, id: id, dir: filepath.Join(s.dir, id),
		made: make(chan struct{}), ended: make(chan struct{}), complete: make(chan struct{}),
	}
}

// checkID refuses what cannot be a file's name.
func checkID(id string) error {
	if id == "" || len(id) > 128 || id[0] == '.' || strings.ContainsAny(id, "/\x00") {
		return fault.New(fault.Invalid, "monitor", "bad container ID %q", id)
	}
	return nil
}

// take returns the container of an ID with op held, or NotFound.
func (s *server) take(id string) (*container, error) {
	for {
		s.mu.Lock()
		c := s.containers[id]
		s.mu.Unlock()
		if c == nil {
			return nil, fault.New(fault.NotFound, "monitor", "no container %s", id)
		}
		c.op.Lock()
		if !c.gone {
			return c, nil
		}
		c.op.Unlock()
	}
}

// takeOrAdd returns the container of an ID, or a new one, with op held.
func (s *server) takeOrAdd(id string) *container {
	for {
		s.mu.Lock()
		c := s.containers[id]
		if c == nil {
			c = s.newContainer(id)
			c.op.Lock()
			s.containers[id] = c
			s.mu.Unlock()
			return c
		}
		s.mu.Unlock()
		c.op.Lock()
		if !c.gone {
			return c
		}
		c.op.Unlock()
	}
}

// drop makes the server forget c. c.op must be held.
func (s *server) drop(c *container) {
	c.gone = true
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, c.id)
}

// save changes the record, on disk first, by replacement.
func (c *container) save(change func(*record)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	rec := c.rec
	change(&rec)
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	temp, path := filepath.Join(c.dir, ".container.json"), filepath.Join(c.dir, "container.json")
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	c.rec = rec
	return nil
}

func (c *container) load() error {
	data, err := os.ReadFile(filepath.Join(c.dir, "container.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &c.rec); err != nil {
		return err
	}
	if c.rec.Container.ID != c.id {
		return errors.New("container.json is of another container")
	}
	return nil
}

// get returns a copy of the record.
func (c *container) get() record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

func (c *container) output() *stdio.Streams {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.io
}

// status gives what List says; not ok while it is being made.
func (c *container) status() (monitor.Status, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	status := monitor.Status{ID: c.id, Pid: c.rec.Pid, Exit: c.rec.Exit}
	if c.hasEnded() {
		status.Pid = 0
	}
	return status, c.rec.Phase != creating && !c.rec.Throwaway
}

func (c *container) setOutput(o *stdio.Streams) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.io = o
}

func (c *container) hasEnded() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// exitSince gives the exit if it was announced after seen.
func (c *container) exitSince(seen uint64) *monitor.Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exitSeq <= seen || c.rec.Throwaway {
		return nil
	}
	return c.rec.Exit
}

// report logs trouble with a container's output, at most once in ten seconds.
func (c *container) report(err error) {
	c.mu.Lock()
	quiet := time.Since(c.reported) < 10*time.Second
	if !quiet {
		c.reported = time.Now()
	}
	c.mu.Unlock()
	if !quiet {
		c.s.log.Warn("container output", "id", c.id, "error", err)
	}
}
