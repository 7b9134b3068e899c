package nri

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
)

func specA() *specs.Spec {
	limit := int64(1 << 20)
	return &specs.Spec{
		Process:     &specs.Process{Args: []string{"sh"}, Env: []string{"A=1", "B=2"}, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Hard: 1}}},
		Annotations: map[string]string{"gone": "1"},
		Mounts:      []specs.Mount{{Destination: "/data", Source: "/a", Options: []string{"rbind"}}},
		Linux: &specs.Linux{
			CgroupsPath: "/p/c1",
			Namespaces:  []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/net"}, {Type: specs.IPCNamespace, Path: "/ipc"}},
			Devices:     []specs.LinuxDevice{{Path: "/dev/old"}},
			Resources:   &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}},
		},
	}
}

// Everything that a plugin may adjust arrives in the spec.
func TestAdjust(t *testing.T) {
	a := &api.ContainerAdjustment{}
	a.AddAnnotation("new", "2")
	a.RemoveAnnotation("gone")
	a.AddMount(&api.Mount{Destination: "/data", Source: "/b", Type: "bind", Options: []string{"rbind", "ro"}})
	a.AddEnv("A", "9")
	a.RemoveEnv("B")
	a.AddEnv("C", "3")
	a.SetArgs([]string{"sleep", "1"})
	a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: "/hook"}}, Prestart: []*api.Hook{{Path: "/pre"}}, Poststart: []*api.Hook{{Path: "/post"}}, Poststop: []*api.Hook{{Path: "/stop"}}})
	a.AddRlimit("RLIMIT_CORE", 7, 8)
	a.AddDevice(&api.LinuxDevice{Path: "/dev/new", Type: "c", Major: 1, Minor: 3})
	a.RemoveDevice("/dev/old")
	a.AddCDIDevice(&api.CDIDevice{Name: "vendor.com/class=dev"})
	a.SetLinuxCgroupsPath("/p/other")
	score := 55
	a.SetLinuxOomScoreAdj(&score)
	a.SetLinuxCPUShares(200)
	a.SetLinuxCPUQuota(1000)
	a.SetLinuxCPUPeriod(2000)
	a.SetLinuxCPUSetCPUs("0")
	a.SetLinuxCPUSetMems("1")
	a.SetLinuxMemoryLimit(1 << 30)
	a.AddLinuxHugepageLimit("2MB", 4)
	a.AddLinuxUnified("memory.high", "5")
	a.SetLinuxPidLimits(66)
	a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ERRNO"})
	a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "network", Path: "/other"})
	a.RemoveNamespace(&api.LinuxNamespace{Type: "ipc"})
	a.SetLinuxSysctl("net.y", "1")
	a.SetLinuxRDTClosID("gold")
	s := specA()
	var injected []string
	changed, err := adjust(s, a, func(_ *specs.Spec, devices []string) error { injected = devices; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if changed.CpuShares != 200 || changed.CpuQuota != 1000 || changed.CpuPeriod != 2000 || changed.MemoryLimitInBytes != 1<<30 ||
		changed.MemorySwapLimitInBytes != 0 || changed.OomScoreAdj != 55 || changed.CpusetCpus != "0" || changed.Unified["memory.high"] != "5" {
		t.Errorf("changed %v", changed)
	}
	if !slices.Equal(injected, []string{"vendor.com/class=dev"}) {
		t.Errorf("CDI devices %q", injected)
	}
	got, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"args":["sleep","1"]`, `"env":["A=9","C=3"]`, `"rlimits":[{"type":"RLIMIT_CORE","hard":7,"soft":8}]`, `"annotations":{"new":"2"}`,
		`"mounts":[{"destination":"/data","type":"bind","source":"/b","options":["rbind","ro"]}]`, `"createRuntime":[{"path":"/hook"`,
		`"prestart":[{"path":"/pre"`, `"poststart":[{"path":"/post"`, `"poststop":[{"path":"/stop"`,
		`"cgroupsPath":"/p/other"`, `"oomScoreAdj":55`, `"shares":200`, `"quota":1000`, `"period":2000`, `"cpus":"0"`, `"mems":"1"`,
		`"memory":{"limit":1073741824}`, `"hugepageLimits":[{"pageSize":"2MB","limit":4}]`, `"unified":{"memory.high":"5"}`, `"pids":{"limit":66}`,
		`"seccomp":{"defaultAction":"SCMP_ACT_ERRNO"`, `"namespaces":[{"type":"network","path":"/other"}]`, `"sysctl":{"net.y":"1"}`,
		`"closID":"gold"`, `"path":"/dev/new","type":"c","major":1,"minor":3`,
		`{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"}`,
	} {
		if !strings.Contains(string(got), want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
	if strings.Contains(string(got), "/dev/old") {
		t.Error("the old device is still there")
	}
}

// Where swap is counted, it is limited with memory.
func TestAdjustSwap(t *testing.T) {
	a := &api.ContainerAdjustment{}
	a.SetLinuxMemoryLimit(1 << 30)
	s := specA()
	swap := int64(1 << 21)
	s.Linux.Resources.Memory.Swap = &swap
	changed, err := adjust(s, a, nil)
	if err != nil || changed.MemorySwapLimitInBytes != 1<<30 || *s.Linux.Resources.Memory.Swap != 1<<30 {
		t.Errorf("%v, %v", changed, err)
	}
}

// What cannot be done is refused rather than left out.
func TestAdjustRefused(t *testing.T) {
	for want, set := range map[string]func(*api.ContainerAdjustment){
		"block I/O class": func(a *api.ContainerAdjustment) { a.SetLinuxBlockIOClass("fast") },
		"CDI devices x/y": func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "x/y"}) },
		"unknown kind":    func(a *api.ContainerAdjustment) { a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "nope"}) },
	} {
		a := &api.ContainerAdjustment{}
		set(a)
		if _, err := adjust(&specs.Spec{}, a, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// Evictions are picked up from answers and from what plugins ask for.
func TestEvictions(t *testing.T) {
	evict := []*api.ContainerEviction{{ContainerId: "c9", Reason: "no room"}}
	for method, m := range map[string]proto.Message{
		"CreateContainer": &api.CreateContainerResponse{Evict: evict}, "UpdateContainer": &api.UpdateContainerResponse{Evict: evict},
	} {
		ctx, heard := overhear(t.Context())
		err := overhearAnswer(ctx, &ttrpc.Request{Method: method}, &ttrpc.Response{}, nil, func(_ context.Context, _ *ttrpc.Request, r *ttrpc.Response) (err error) {
			r.Payload, err = proto.Marshal(m)
			return err
		})
		if got := heard.all(); err != nil || len(got) != 1 || got[0] != (Eviction{"c9", "no room"}) {
			t.Errorf("%s: %v, %v", method, got, err)
		}
	}
	payload, err := proto.Marshal(&api.UpdateContainersRequest{Evict: evict})
	if err != nil {
		t.Fatal(err)
	}
	var got []Eviction
	_, err = overhearRequest(t.Context(), func(m any) error { return proto.Unmarshal(payload, m.(proto.Message)) }, nil,
		func(ctx context.Context, unmarshal func(any) error) (any, error) {
			err := unmarshal(&api.UpdateContainersRequest{})
			got = overheard(ctx).all()
			return nil, err
		})
	if err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
	failing := errors.New("no answer")
	if err := overhearAnswer(t.Context(), nil, nil, nil, func(context.Context, *ttrpc.Request, *ttrpc.Response) error { return failing }); err != failing {
		t.Error(err)
	}
}
