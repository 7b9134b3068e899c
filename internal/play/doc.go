// Package play makes pods from Kubernetes Pod manifests, doing through the
// Container Runtime Interface what a kubelet would do.
//
// It owns the reading of manifests (Read), the defaults that the API server
// would fill in, the translation into CRI requests (sandbox.go, container.go
// and what they call: pure, apart from the volumes' directories), and the
// files of a played pod: volumes, /etc/hosts, termination messages (Files).
// Player.Up carries it out, Player.Down takes it back.
//
// What never happens here: restarting, probing or evicting anything (that is
// the kubelet's work), and talking to a runtime by other means than the CRI.
// cmd/davit is the only caller.
package play
