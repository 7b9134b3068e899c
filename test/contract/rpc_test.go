package contract

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An rpc is one method of the CRI.
type rpc struct {
	name   string // "Version"
	path   string // "/runtime.v1.RuntimeService/Version"
	in     protoreflect.MessageType
	out    protoreflect.MessageType
	stream bool
}

// rpcs are all methods of the CRI, by name.
var rpcs = func() map[string]rpc {
	all := map[string]rpc{}
	services := runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			all[string(m.Name())] = rpc{
				name: string(m.Name()), path: "/" + string(services.Get(i).FullName()) + "/" + string(m.Name()),
				in: message(m.Input()), out: message(m.Output()), stream: m.IsStreamingServer(),
			}
		}
	}
	return all
}()

func message(d protoreflect.MessageDescriptor) protoreflect.MessageType {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err)
	}
	return t
}

// call invokes the RPC that takes such a request, in either version of the
// CRI. A stream that ends without a message is no error; one that has none for
// a moment is none either.
func (w *world) call(request proto.Message, legacy bool) (proto.Message, error) {
	name := strings.TrimSuffix(string(request.ProtoReflect().Descriptor().Name()), "Request")
	if name == "GetEvents" {
		name = "GetContainerEvents"
	}
	r, known := rpcs[name]
	if !known {
		w.t.Fatalf("no RPC takes %s", request.ProtoReflect().Descriptor().Name())
	}
	ctx := w.ctx
	if name == "GetContainerEvents" {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
	}
	path := r.path
	if legacy {
		path = strings.Replace(path, "runtime.v1.", "runtime.v1alpha2.", 1)
	}
	response := r.out.New().Interface()
	err := w.c.Call(ctx, path, request, response, r.stream)
	if errors.Is(err, io.EOF) || name == "GetContainerEvents" && codeOf(err) == codes.DeadlineExceeded {
		err = nil
	}
	return response, err
}

// later are RPCs that davit does not serve yet.
var later = map[string]bool{"CheckpointContainer": true, "CheckpointPod": true, "RestorePod": true}

// need skips a test of an RPC that the runtime does not serve.
func (w *world) need(name string) {
	w.t.Helper()
	r := rpcs[name]
	s := *w
	if _, err := s.call(r.in.New().Interface(), false); codeOf(err) == codes.Unimplemented {
		differs(w.t, "%s: %v", name, err)
		w.t.SkipNow()
	}
}

// needLegacy skips a test of v1alpha2 if the runtime does not serve it.
func (w *world) needLegacy() {
	w.t.Helper()
	if _, err := w.call(&runtimeapi.VersionRequest{}, true); codeOf(err) == codes.Unimplemented {
		differs(w.t, "no v1alpha2: %v", err)
		w.t.SkipNow()
	}
}

// TestEveryRPC: all 43 are served; what an empty request gets is told by field.
func TestEveryRPC(t *testing.T) {
	w := shared(t)
	if len(rpcs) != 43 {
		t.Errorf("%d RPCs, want 43", len(rpcs))
	}
	// "" is success: nothing is required, or what is absent shall be gone.
	field := map[string]string{
		"Version": "", "Status": "", "RuntimeConfig": "", "UpdateRuntimeConfig": "",
		"ListPodSandbox": "", "ListContainers": "", "ListImages": "", "ListContainerStats": "", "ListPodSandboxStats": "",
		"ListMetricDescriptors": "", "ListPodSandboxMetrics": "", "ImageFsInfo": "", "GetContainerEvents": "",
		"StreamPodSandboxes": "", "StreamContainers": "", "StreamContainerStats": "", "StreamPodSandboxStats": "",
		"StreamPodSandboxMetrics": "", "StreamImages": "",
		"RunPodSandbox": "config", "StopPodSandbox": "pod_sandbox_id", "RemovePodSandbox": "pod_sandbox_id",
		"PodSandboxStatus": "pod_sandbox_id", "PodSandboxStats": "pod_sandbox_id", "UpdatePodSandboxResources": "pod_sandbox_id",
		"PortForward": "pod_sandbox_id", "CreateContainer": "pod_sandbox_id",
		"StartContainer": "container_id", "StopContainer": "container_id", "RemoveContainer": "container_id",
		"ContainerStatus": "container_id", "ContainerStats": "container_id", "UpdateContainerResources": "container_id",
		"ReopenContainerLog": "container_id", "ExecSync": "container_id", "Exec": "container_id", "Attach": "container_id",
		"ImageStatus": "image", "PullImage": "image", "RemoveImage": "image",
	}
	for name, r := range rpcs {
		t.Run(name, func(t *testing.T) {
			_, err := w.within(t).call(r.in.New().Interface(), false)
			required, known := field[name]
			switch {
			case later[name]:
				prefer(t, err, codes.Unimplemented)
			case !known:
				t.Error("this table does not have it")
			case required == "":
				prefer(t, err, codes.OK)
			default:
				prefer(t, err, codes.InvalidArgument, required)
			}
		})
	}
	for _, path := range []string{"/runtime.v1.RuntimeService/NoSuch", "/runtime.v2.RuntimeService/Version", "/nonsense"} {
		err := w.c.Call(w.ctx, path, &runtimeapi.VersionRequest{}, &runtimeapi.VersionResponse{}, false)
		must(t, err, codes.Unimplemented)
	}
}

// TestLegacy: v1alpha2 has the 24 + 5 methods that it ever had, and no more.
func TestLegacy(t *testing.T) {
	w := shared(t)
	w.needLegacy()
	had := strings.Fields(`Version RunPodSandbox StopPodSandbox RemovePodSandbox PodSandboxStatus ListPodSandbox CreateContainer StartContainer
		StopContainer RemoveContainer ListContainers ContainerStatus UpdateContainerResources ReopenContainerLog ExecSync Exec Attach PortForward
		ContainerStats ListContainerStats PodSandboxStats ListPodSandboxStats UpdateRuntimeConfig Status
		ListImages ImageStatus PullImage RemoveImage ImageFsInfo`)
	served := map[string]bool{}
	for _, name := range had {
		served[name] = true
	}
	if len(served) != 29 {
		t.Fatal(len(served))
	}
	for name, r := range rpcs {
		_, err := w.call(r.in.New().Interface(), true)
		if unimplemented := codeOf(err) == codes.Unimplemented; unimplemented == served[name] {
			t.Errorf("%s: %v", name, err)
		}
		if _, v1 := w.call(r.in.New().Interface(), false); served[name] && codeOf(v1) != codeOf(err) {
			t.Errorf("%s: %v, but v1 says %v", name, err, v1)
		}
	}
	r, err := w.call(&runtimeapi.VersionRequest{}, true)
	if v := r.(*runtimeapi.VersionResponse); err != nil || v.RuntimeApiVersion != "v1alpha2" || v.Version != "0.1.0" {
		t.Errorf("%v, %v", v, err)
	}
}

// TestUnknown: what is not there is NotFound where something is asked of it,
// and success where it shall be gone. What cannot be an ID does no harm.
func TestUnknown(t *testing.T) {
	w := shared(t)
	config := w.config("c", "true")
	for name, id := range map[string]string{
		"unknown": "0123456789abcdef", "whole": strings.Repeat("f", 64), "climbing": "../../../etc", "dot": ".", "slash": "a/b",
		"zero byte": "a\x00b", "pattern": "*", "long": strings.Repeat("a", 100_000), "space": " ", "unprintable": "\n\u202e",
	} {
		t.Run(name, func(t *testing.T) {
			w := w.within(t)
			for _, request := range []proto.Message{
				&runtimeapi.StopPodSandboxRequest{PodSandboxId: id}, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id},
				&runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}, &runtimeapi.RemoveContainerRequest{ContainerId: id},
			} {
				_, err := w.call(request, false)
				if name == "unknown" || name == "whole" {
					must(t, err, codes.OK)
				} else if err != nil {
					prefer(t, err, codes.InvalidArgument)
				}
			}
			for _, request := range []proto.Message{
				&runtimeapi.PodSandboxStatusRequest{PodSandboxId: id}, &runtimeapi.ContainerStatusRequest{ContainerId: id},
				&runtimeapi.PodSandboxStatsRequest{PodSandboxId: id}, &runtimeapi.ContainerStatsRequest{ContainerId: id},
				&runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: config}, &runtimeapi.StartContainerRequest{ContainerId: id},
				&runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 1},
				&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true},
				&runtimeapi.AttachRequest{ContainerId: id, Stdout: true}, &runtimeapi.PortForwardRequest{PodSandboxId: id, Port: []int32{80}},
				&runtimeapi.ReopenContainerLogRequest{ContainerId: id},
				&runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 5}},
				&runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: id, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 5}},
			} {
				_, err := w.call(request, false)
				judge := want
				switch request.(type) {
				case *runtimeapi.ExecRequest, *runtimeapi.AttachRequest, *runtimeapi.PortForwardRequest:
					judge = prefer // an endpoint may be prepared to nowhere
				case *runtimeapi.PodSandboxStatusRequest, *runtimeapi.ContainerStatusRequest:
					if name == "unknown" || name == "whole" {
						judge = must // a kubelet takes what has another code for something that is still there
					}
				}
				if code := codeOf(err); code == codes.InvalidArgument && name != "unknown" && name != "whole" {
					continue
				}
				before := t.Failed()
				judge(t, err, codes.NotFound)
				if codeOf(err) == codes.NotFound && len(id) < 100 && id > " " && !strings.Contains(id, "\x00") {
					prefer(t, err, codes.NotFound, id)
				}
				if t.Failed() && !before {
					t.Logf("so it was answered to a %T", request)
				}
			}
		})
	}
	for _, ref := range []string{"absent:1", "127.0.0.1:1/a/b:c", "sha256:" + strings.Repeat("0", 64), strings.Repeat("0", 64), "a@sha256:" + strings.Repeat("0", 64)} {
		spec := &runtimeapi.ImageSpec{Image: ref}
		_, err := w.c.RemoveImage(w.ctx, &runtimeapi.RemoveImageRequest{Image: spec})
		must(t, err, codes.OK)
		r, err := w.c.ImageStatus(w.ctx, &runtimeapi.ImageStatusRequest{Image: spec})
		if must(t, err, codes.OK); r.GetImage() != nil {
			t.Errorf("ImageStatus of %s: %v", ref, r)
		}
	}
}
