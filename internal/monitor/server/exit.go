package server

import (
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/monitor"
)

// end is called once, when the keeper has said that c's process ended.
func (c *container) end(ended monitor.Ended) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hasEnded() {
		return
	}
	close(c.ended)
	go c.finish(ended)
}

// finish completes the log, decides what kind of end it was, and tells.
func (c *container) finish(ended monitor.Ended) {
	<-c.made
	if c.get().Phase == creating {
		return // abandon takes care
	}
	kills := c.s.oom.count(c) // before anybody deletes the cgroup
	if o := c.output(); o != nil {
		o.Finish()
	}
	rec := c.get()
	exit := rec.Exit
	if exit == nil {
		exit = &monitor.Exit{
			ID: c.id, Code: ended.Code, Signal: ended.Signal, At: ended.At,
			OOMKilled: kills > 0 && ended.Code == 128+int(unix.SIGKILL) && !rec.Killed,
		}
		if exit.OOMKilled {
			exit.OOM = rec.OOM
		}
	}
	err := c.save(func(r *record) { r.Phase, r.Exit = complete, exit })
	if err != nil {
		c.s.log.Error("exit not saved", "id", c.id, "error", err)
		c.mu.Lock()
		c.rec.Phase, c.rec.Exit = complete, exit
		c.mu.Unlock()
	}
	c.setOutput(nil)
	if err := c.s.keeper.drop(c.id+"/stdout", c.id+"/stdout.stage", c.id+"/stderr", c.id+"/stderr.stage",
		c.id+"/log", c.id+"/console", c.id+"/stdin"); err != nil {
		c.s.log.Error("descriptors not dropped", "id", c.id, "error", err)
	}
	close(c.complete)
	c.s.announce(c)
}
