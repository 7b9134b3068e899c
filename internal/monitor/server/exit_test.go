package server

import "testing"

func TestOOMKills(t *testing.T) {
	for text, want := range map[string]int{
		"low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n": 2,
		"oom_kill_disable 0\nunder_oom 0\noom_kill 1\n":                1,
		"oom_kill_disable 0\nunder_oom 0\n":                            0, // before Linux 4.13
		"":                                                             0,
	} {
		if got := oomKills([]byte(text)); got != want {
			t.Errorf("%q: %d", text, got)
		}
	}
}
