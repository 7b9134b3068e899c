package main

import (
	"strings"
	"testing"
)

// offers runs what a shell runs when the tab key is pressed.
func (s *shell) offers(want string, args ...string) {
	s.Helper()
	s.davit(0, "", append([]string{"__complete", "--endpoint", s.socket.Path()}, args...)...)
	if got := strings.Fields(s.out); strings.Join(got[:len(got)-1], " ") != want {
		s.Errorf("%q: %q, want %q", args, s.out, want)
	}
}

// TestCompletion: shells offer what there is.
func TestCompletion(t *testing.T) {
	s := newShell(t)
	s.play(0, twoContainers)
	s.play(0, "apiVersion: v1\nkind: Pod\nmetadata: {name: job}\nspec:\n  containers: [{name: c, image: 'reg/a:1'}]")
	s.offers("job web", "logs", "")
	s.offers("web", "exec", "w")
	s.offers("", "logs", "web", "")
	s.offers("web", "debug", "w")
	s.offers("job web", "top", "")
	s.offers("web:", "cp", "./x", "w")
	s.offers("", "cp", "/etc/ho")
	s.offers("job", "stop", "web", "")
	s.offers("setup second server", "exec", "web", "-c", "se")
	s.offers("reg/a:1 reg/b:latest", "rmi", "")
	s.offers("reg/a:1", "image", "save", "reg/b:latest", "")
	s.offers("json", "pods", "-o", "")
	s.offers("yaml yml json", "play", "")
	s.offers("containerd cri-o", "image", "import", "")
	s.play(0, "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: other}\nspec:\n  containers: [{name: c, image: 'reg/a:1'}]")
	s.offers("other/web job shop/web", "rm", "")
	s.socket.Vanish()
	s.offers("", "logs", "")
}
