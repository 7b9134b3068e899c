// Package pod is the core: what pods and containers are, what they hold, and
// how they change.
//
// It owns their records (one directory each, one file, replaced whole) and is
// the only one to change their state. Everything that touches the kernel, an
// image or a process is a driver behind the interfaces in drivers.go; the few
// mounts of a pod's own are in podsteps.go. Package cri calls it.
//
// Nothing is acquired before it is written down. No lock is held across I/O,
// exec or RPC, save a record's own for its one small file. Reading waits for
// nothing. No work ends because its caller has gone.
//
//	Open(ctx, Options) (*Pods, error)            load records, recover; then it may be served
//	(*Pods) Serve(ctx) error                     watch exits and retry releases until ctx ends
//	(*Pods) Close()                              end what is under way, as a crash would; wait
//	(*Pods) Run(ctx, config, handler) (id, error)
//	(*Pods) Stop, Remove(ctx, id) error          idempotent; unknown IDs succeed
//	(*Pods) Pod(id) (*Snapshot, error), List()   id: any unique prefix; never blocks
//	(*Pods) CreateContainer(ctx, podID, config) (id, error)
//	(*Pods) StartContainer(ctx, id); StopContainer(ctx, id, grace); RemoveContainer(ctx, id)
//	(*Pods) Container(id), Containers()          never blocks
//	(*Pods) UpdateContainer(ctx, id, resources); ReopenLog(ctx, id); Exec(ctx, id, args, timeout)
package pod
