package label

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/fault"
)

// A fakePolicy does as the kernel's with container-selinux.
type fakePolicy struct {
	next     int
	reserved []string
	files    map[string]string
	work     int
}

func (f *fakePolicy) Init(options []string) (process, mount string, err error) {
	parts := map[string]string{"user": "system_u", "role": "system_r", "type": "container_t"}
	for _, o := range options {
		name, value, _ := strings.Cut(o, ":")
		parts[name] = value
	}
	if parts["type"] == "nonsense_t" {
		return "", "", errors.New("invalid argument")
	}
	if parts["level"] == "" {
		f.next++
		parts["level"] = fmt.Sprintf("s0:c%d,c%d", f.next, f.next+1)
	}
	process = strings.Join([]string{parts["user"], parts["role"], parts["type"], parts["level"]}, ":")
	f.reserved = append(f.reserved, parts["level"])
	return process, parts["user"] + ":object_r:container_file_t:" + parts["level"], nil
}

func (f *fakePolicy) Reserve(label string) error {
	_, level, _ := cutLevel(label)
	f.reserved = append(f.reserved, level)
	return nil
}

func (f *fakePolicy) Release(label string) {
	_, level, _ := cutLevel(label)
	f.reserved = slices.DeleteFunc(f.reserved, func(l string) bool { return l == level })
}

func (f *fakePolicy) Of(path string) (string, error) { return f.files[path], nil }

func (f *fakePolicy) Relabel(path, label string) error {
	if path == "/usr" {
		return errors.New("not there")
	}
	f.files[path] = label
	f.work++
	return nil
}

func TestLabels(t *testing.T) {
	f := &fakePolicy{files: map[string]string{}}
	s := With(f)
	pod, err := s.Pod(nil)
	if want := (Labels{"system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"}); err != nil || pod != want {
		t.Fatalf("%+v, %v", pod, err)
	}
	type context = runtimeapi.LinuxContainerSecurityContext
	for _, tt := range []struct {
		name string
		sc   *context
		want Labels
	}{
		{"as the pod", nil, pod},
		{"empty options", &context{SelinuxOptions: &runtimeapi.SELinuxOption{}}, pod},
		{"own type", &context{SelinuxOptions: &runtimeapi.SELinuxOption{Type: "my_t"}},
			Labels{"system_u:system_r:my_t:s0:c1,c2", pod.Mount}},
		{"own level", &context{SelinuxOptions: &runtimeapi.SELinuxOption{Level: "s0"}},
			Labels{"system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0"}},
		{"all", &context{SelinuxOptions: &runtimeapi.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "s0:c4,c5"}},
			Labels{"u:r:t:s0:c4,c5", "u:object_r:container_file_t:s0:c4,c5"}},
		{"privileged", &context{Privileged: true}, Labels{"", pod.Mount}},
	} {
		if got, err := s.Container(pod, tt.sc); err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		}
	}
	_, err = s.Container(pod, &context{SelinuxOptions: &runtimeapi.SELinuxOption{Type: "nonsense_t"}})
	if !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if _, err := s.Pod(&runtimeapi.SELinuxOption{Type: "nonsense_t"}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	f.reserved = nil // davitd is started anew
	if err := s.Keep(pod); err != nil || !slices.Contains(f.reserved, "s0:c1,c2") {
		t.Errorf("%q, %v", f.reserved, err)
	}
	for range 2 {
		if s.Release(pod); slices.Contains(f.reserved, "s0:c1,c2") {
			t.Errorf("%q", f.reserved)
		}
	}
}

// Millions of files are walked once, not at each start.
func TestRelabel(t *testing.T) {
	f := &fakePolicy{files: map[string]string{}}
	s := With(f)
	for range 3 {
		if err := s.Relabel("/data", "a:b:c:s0"); err != nil || f.files["/data"] != "a:b:c:s0" || f.work != 1 {
			t.Errorf("%v, %d times, %v", f.files, f.work, err)
		}
	}
	if err := s.Relabel("/usr", "a:b:c:s0"); !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "/usr") {
		t.Error(err)
	}
}

func TestWithoutSELinux(t *testing.T) {
	var s *SELinux
	pod, err := s.Pod(&runtimeapi.SELinuxOption{Type: "spc_t"})
	ctr, ctrErr := s.Container(pod, &runtimeapi.LinuxContainerSecurityContext{SelinuxOptions: &runtimeapi.SELinuxOption{Type: "spc_t"}})
	if err != nil || ctrErr != nil || pod != (Labels{}) || ctr != (Labels{}) {
		t.Errorf("%v %v %v %v", pod, err, ctr, ctrErr)
	}
	s.Release(pod)
	if err := errors.Join(s.Keep(pod), s.Relabel("/nowhere", "x")); err != nil {
		t.Error(err)
	}
}
