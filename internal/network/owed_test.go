package network

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/davit-runtime/davit/internal/fault"
)

// A pod whose DEL fails for ever waits for it, but not for ever; what its
// plugins hold is written down, told, and tried on, also by the next davitd.
func TestDelFailsForEver(t *testing.T) {
	for _, test := range []struct {
		name         string
		breaks, mend func(f fake)
		reason       string
	}{
		{"plugin fails", func(f fake) { f.does("DEL", `echo '{"code": 11, "msg": "daemon is gone"}'; exit 1`) },
			func(f fake) { f.stops("DEL") }, "daemon is gone"},
		{"plugin was removed", func(f fake) { _ = os.Rename(f.dir+"/fake", f.dir+"/gone") },
			func(f fake) { _ = os.Rename(f.dir+"/gone", f.dir+"/fake") }, "failed to find plugin"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, c, n := openFake(t, fakeList)
			ctx := context.Background()
			p := Pod{ID: "stuck", Name: "web", Namespace: "default", NetNS: "/nowhere"}
			if _, err := n.Attach(ctx, p); err != nil {
				t.Fatal(err)
			}
			test.breaks(f)
			n.SetCNI(t.Context(), n.config.ConfDir, n.config.PluginDirs, time.Hour)
			for range 2 {
				if err := n.Detach(ctx, p); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), test.reason) {
					t.Errorf("at first: %v", err)
				}
			}
			cancelled, cancel := context.WithCancel(ctx)
			cancel()
			n.SetCNI(t.Context(), n.config.ConfDir, n.config.PluginDirs, time.Nanosecond)
			if err := n.Detach(cancelled, p); err == nil {
				t.Error("davitd stops: it counts as detached")
			}
			if owed := n.Owed(); len(owed) != 0 {
				t.Errorf("owed while the pod waits: %q", owed)
			}
			for range 2 {
				if err := n.Detach(ctx, p); err != nil {
					t.Errorf("at last: %v", err)
				}
			}
			owed := n.Owed()
			if len(owed) != 1 || !strings.Contains(owed[0], "default/web") || !strings.Contains(owed[0], test.reason) {
				t.Errorf("owed: %q", owed)
			}

			n, err := Open(c) // davitd starts again
			if err != nil {
				t.Fatal(err)
			}
			if err := n.Collect(ctx, nil); err == nil || len(n.Owed()) != 1 {
				t.Errorf("collect: %v, owed %q", err, n.Owed())
			}
			test.mend(f)
			before := len(f.calls("DEL"))
			n.pay(ctx, time.Now().Add(owedFirst/2))
			if len(n.Owed()) != 1 || len(f.calls("DEL")) != before {
				t.Error("it is tried again too early")
			}
			n.pay(ctx, time.Now().Add(owedFirst))
			if len(n.Owed()) != 0 || n.leases.get("stuck") != nil {
				t.Errorf("once it works: owed %q, lease %v", n.Owed(), n.leases.get("stuck"))
			}
		})
	}
}

// Tries that fail come less and less often.
func TestOwedBacksOff(t *testing.T) {
	var d debts
	d.owe(&lease{Pod: "a"}, os.ErrNotExist)
	var tries int
	begin := time.Now()
	for at := begin; at.Before(begin.Add(24 * time.Hour)); at = at.Add(keepInterval) {
		tries += len(d.due(at))
	}
	if tries < 24 || tries > 40 {
		t.Errorf("%d tries on the first day", tries)
	}
}
