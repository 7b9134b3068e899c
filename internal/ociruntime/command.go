package ociruntime

import "strconv"

// A Console names the socket that takes the terminal of a create or an exec;
// empty: no terminal.
type Console string

// base gives the options that stand before every command. errorLog is the file
// that takes the runtime's errors as JSON lines.
func (r Runtime) base(errorLog string) []string {
	args := []string{r.Path}
	if r.Root != "" {
		args = append(args, "--root", r.Root)
	}
	if errorLog != "" {
		args = append(args, "--log", errorLog, "--log-format", "json")
	}
	switch {
	case r.NoCgroup:
		args = append(args, "--cgroup-manager=disabled")
	case r.SystemdCgroup:
		args = append(args, "--systemd-cgroup")
	}
	return args
}

// Create gives the command line that creates container id from bundle. The
// process it leaves waits for Start; its pid is in pidFile afterwards.
func (r Runtime) Create(errorLog, id, bundle, pidFile string, console Console) []string {
	args := append(r.base(errorLog), "create", "--bundle", bundle, "--pid-file", pidFile)
	if console != "" {
		args = append(args, "--console-socket", string(console))
	}
	return append(args, id)
}

// Start gives the command line that lets a created container run.
func (r Runtime) Start(errorLog, id string) []string {
	return append(r.base(errorLog), "start", id)
}

// State gives the command line that prints a container's state as JSON.
func (r Runtime) State(errorLog, id string) []string {
	return append(r.base(errorLog), "state", id)
}

// Delete gives the command line that forgets a container whose process is
// dead. With force it kills first; runc then polls every 100 ms.
func (r Runtime) Delete(errorLog, id string, force bool) []string {
	args := append(r.base(errorLog), "delete")
	if force {
		args = append(args, "--force")
	}
	return append(args, id)
}

// Exec gives the command line that runs the process in processFile inside a
// container and leaves it behind; its pid is in pidFile afterwards.
func (r Runtime) Exec(errorLog, id, processFile, pidFile string, console Console) []string {
	args := append(r.base(errorLog), "exec", "--detach", "--process", processFile, "--pid-file", pidFile)
	if console != "" {
		args = append(args, "--console-socket", string(console))
	}
	return append(args, id)
}

// Update gives the command line that reads new limits from file.
func (r Runtime) Update(errorLog, id, file string) []string {
	return append(r.base(errorLog), "update", "--resources", file, id)
}

// Kill gives the command line that sends a signal to a container's first process.
func (r Runtime) Kill(errorLog, id string, signal int) []string {
	return append(r.base(errorLog), "kill", id, strconv.Itoa(signal))
}
