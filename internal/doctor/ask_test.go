package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/criclient"
	"github.com/davit-runtime/davit/criclient/crifake"
)

// serve answers on a socket of its own; the answer is what ask makes of it.
func serve(t *testing.T, what crifake.Serves, arrange func(*crifake.Runtime)) Answer {
	t.Helper()
	dir, err := os.MkdirTemp("", "doctor") // short, as sockets' paths must be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := crifake.New()
	arrange(r)
	s, err := r.Listen(filepath.Join(dir, "cri.sock"), what)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return ask(ctx, "unix://"+s.Path(), "unix://"+s.Path())
}

func TestAsk(t *testing.T) {
	nothing := func(*crifake.Runtime) {}
	a := serve(t, crifake.Both(), func(r *crifake.Runtime) {
		r.SetCondition(runtimeapi.NetworkReady, false, "NetworkPluginNotReady", "no CNI configuration")
	})
	if a.Err != nil || !slices.Equal(a.APIs, []string{"v1", "v1alpha2"}) || a.ImageErr != nil || a.Name == "" || len(a.ImageDirs) == 0 || a.CgroupDriver == "" {
		t.Errorf("both: %+v", a)
	}
	if !slices.Contains(a.Conditions, Condition{"NetworkReady", false, "NetworkPluginNotReady: no CNI configuration"}) || !slices.Contains(a.Conditions, Condition{"RuntimeReady", true, ""}) {
		t.Errorf("conditions: %+v", a.Conditions)
	}
	if a = serve(t, crifake.V1alpha2(), nothing); a.Err != nil || !slices.Equal(a.APIs, []string{"v1alpha2"}) || a.Refused["v1"] == "" {
		t.Errorf("v1alpha2: %+v", a)
	}
	if a = serve(t, crifake.Serves{}, nothing); a.Err != nil || len(a.APIs) != 0 || !notThere(a) {
		t.Errorf("no CRI: %+v", a)
	}
	if a = serve(t, crifake.Serves{Runtime: []criclient.Version{criclient.V1}}, nothing); a.ImageErr == nil || len(a.APIs) != 1 {
		t.Errorf("no images: %+v", a)
	}
	a = serve(t, crifake.V1(), func(r *crifake.Runtime) {
		r.Fail("/runtime.v1.RuntimeService/Version", status.Error(codes.Internal, "disk I/O error"))
	})
	if len(a.APIs) != 0 || notThere(a) {
		t.Errorf("broken: %+v", a)
	}
	if a = ask(t.Context(), "unix:///nonexistent/cri.sock", "unix:///nonexistent/cri.sock"); !errors.Is(a.Err, fs.ErrNotExist) {
		t.Errorf("nobody: %+v", a)
	}
}

// Images may be served elsewhere: what is there counts, and not what the
// runtime's own socket has.
func TestAskForImagesElsewhere(t *testing.T) {
	dir, err := os.MkdirTemp("", "doctor")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	at := func(name string, what crifake.Serves) string {
		s, err := crifake.New().Listen(filepath.Join(dir, name), what)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return "unix://" + s.Path()
	}
	runtime := at("cri.sock", crifake.Serves{Runtime: []criclient.Version{criclient.V1}})
	images := at("images.sock", crifake.Serves{Image: []criclient.Version{criclient.V1alpha2}})
	if a := ask(t.Context(), runtime, images); a.Err != nil || a.ImageErr != nil || len(a.ImageDirs) == 0 {
		t.Errorf("%+v", a)
	}
	if a := ask(t.Context(), at("all.sock", crifake.Both()), runtime); a.Err != nil || a.ImageErr == nil {
		t.Errorf("no images there: %+v", a)
	}
	if a := ask(t.Context(), runtime, "unix://"+dir+"/none.sock"); a.Err != nil || !errors.As(a.ImageErr, new(*criclient.EndpointError)) {
		t.Errorf("nobody there: %+v", a)
	}
}

// A runtime that accepts and says nothing is told from one that is not there.
func TestAskTheSilent(t *testing.T) {
	dir, err := os.MkdirTemp("", "doctor")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	r := crifake.New()
	defer r.Hold("Version")()
	s, err := r.Listen(filepath.Join(dir, "cri.sock"), crifake.V1())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if a := ask(ctx, "unix://"+s.Path(), "unix://"+s.Path()); !errors.Is(a.Err, context.DeadlineExceeded) {
		t.Errorf("%+v", a)
	}
}

// Chains that drop what is forwarded are found among others, unless a rule of
// their table names the link.
func TestDropping(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	drops := func(want ...string) {
		t.Helper()
		got, err := dropping("davit0")
		if slices.Sort(got); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	drops()
	rules, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	chain := func(family nftables.TableFamily, table, name string, hook *nftables.ChainHook, policy nftables.ChainPolicy) *nftables.Chain {
		return rules.AddChain(&nftables.Chain{
			Table: rules.AddTable(&nftables.Table{Family: family, Name: table}), Name: name, Type: nftables.ChainTypeFilter,
			Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &policy,
		})
	}
	chain(nftables.TableFamilyIPv4, "filter", "INPUT", nftables.ChainHookInput, nftables.ChainPolicyDrop)
	forward := chain(nftables.TableFamilyIPv4, "filter", "FORWARD", nftables.ChainHookForward, nftables.ChainPolicyDrop)
	chain(nftables.TableFamilyIPv6, "filter", "FORWARD", nftables.ChainHookForward, nftables.ChainPolicyAccept)
	chain(nftables.TableFamilyINet, "fw", "forward", nftables.ChainHookForward, nftables.ChainPolicyDrop)
	if err := rules.Flush(); err != nil {
		t.Fatal(err)
	}
	drops("inet fw forward", "ip filter FORWARD")
	name := append([]byte("davit0"), make([]byte, unix.IFNAMSIZ-len("davit0"))...)
	rules.AddRule(&nftables.Rule{Table: forward.Table, Chain: forward, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}})
	if err := rules.Flush(); err != nil {
		t.Fatal(err)
	}
	drops("inet fw forward")
}

// Whatever this machine is like, every check comes to an end and says something.
func TestThisNode(t *testing.T) {
	r := Run(t.Context(), ThisNode())
	for _, c := range r.Checks {
		if c.Message == "" && len(c.Findings) == 0 {
			t.Errorf("%s says nothing", c.Check)
		}
		t.Logf("%-8s %s: %s %v", c.Level, c.Check, c.Message, c.Findings)
	}
	t.Logf("in %d ms", r.TookMillis)
}
