// Package inside works in a container from this node, as the node's root: it
// copies files in and out of the container's root, and runs the node's own
// programs in its namespaces. The container needs no program for that, and
// nothing of what it does leads out of it: links are followed within its root
// only, and devices, pipes and sockets are never opened.
//
// It goes by a process of the container, of which it makes sure that it is
// one: that its control group bears the container's ID. Command davit calls it.
package inside
