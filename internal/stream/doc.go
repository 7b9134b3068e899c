// Package stream serves the sessions that clients open over HTTP: exec, attach
// and port-forward, by SPDY and by WebSocket.
//
// It owns the listener, the URLs that it hands out, each good for one session,
// and the sessions' connections. What a session reaches, a container or a
// port, is a function that it is handed; package cri calls it.
//
// The protocols themselves are those of k8s.io/cri-streaming. A session ends
// when what it reaches ends, when its connection is lost, or when davitd stops.
package stream
