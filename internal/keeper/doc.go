// Package keeper is the dull ancestor of every container: the subreaper that
// containers become children of, which reaps them, writes exits/<id>, holds
// the descriptors that the next monitor needs, and starts the monitor again
// whenever it dies.
//
// It owns parenthood, exits/<id> and claims/<id> in the state directory. It
// parses nothing that a container wrote and never starts or stops a container.
// davit-monitor's main calls it.
//
// Lock order: there is one mutex, Keeper.mu, and it is never held across a
// send to the monitor: what is sent goes through a queue.
package keeper
