package main

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func pod(id, namespace, name, uid string, created int64) *runtimeapi.PodSandbox {
	return &runtimeapi.PodSandbox{Id: id, CreatedAt: created, Metadata: &runtimeapi.PodSandboxMetadata{Namespace: namespace, Name: name, Uid: uid}}
}

func container(id, pod, name string, attempt uint32) *runtimeapi.Container {
	return &runtimeapi.Container{Id: id, PodSandboxId: pod, Metadata: &runtimeapi.ContainerMetadata{Name: name, Attempt: attempt}}
}

var (
	findPods = []*runtimeapi.PodSandbox{
		pod("aaa1", "shop", "web", "1", 10),
		pod("aab2", "default", "web", "2", 10),
		pod("abc3", "shop", "db", "3", 10),
		pod("abc4", "shop", "db", "3", 20), // the same pod, started again
		pod("ddd5", "shop", "abc", "5", 10),
	}
	findContainers = []*runtimeapi.Container{
		container("c01", "aaa1", "server", 0),
		container("c02", "aaa1", "server", 1),
		container("c03", "aaa1", "proxy", 0),
		container("d04", "aab2", "server", 0),
		container("e05", "abc4", "postgres", 0),
	}
)

func TestPickPod(t *testing.T) {
	for _, c := range []struct{ ref, want, says string }{
		{"shop/web", "aaa1", ""},
		{"default/web", "aab2", ""},
		{"web", "", `"web" means several pods: shop/web (aaa1), default/web (aab2); be more exact`},
		{"db", "abc4", ""},
		{"aaa1", "aaa1", ""},
		{"aaa", "aaa1", ""},
		{"aa", "", "means several pods"},
		{"abc", "ddd5", ""}, // a name before an ID's beginning
		{"abc3", "abc3", ""},
		{"", "", "there is no pod"},
		{"other/web", "", `there is no pod "other/web"`},
		{"zzz", "", `there is no pod "zzz"; see davit pods`},
	} {
		got, err := pickPod(findPods, c.ref)
		switch {
		case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%q: %v, want %q", c.ref, err, c.says)
		case c.says == "" && (err != nil || got.Id != c.want):
			t.Errorf("%q: %v, %v; want %s", c.ref, got, err, c.want)
		}
	}
}

func TestPickContainers(t *testing.T) {
	for _, c := range []struct{ ref, name, want, says string }{
		{"shop/web", "", "c02 c03", ""},
		{"shop/web", "server", "c02", ""}, // the last attempt
		{"shop/web", "nothing", "", `there is no container "shop/web/nothing"; see davit ps -a`},
		{"web", "server", "", "means several pods"},
		{"shop/web/proxy", "", "c03", ""},
		{"db/postgres", "", "e05", ""},
		{"web/server", "", "", `"web" means several pods`},
		{"shop/web/nothing", "", "", `there is no container "shop/web/nothing"; see davit ps -a`},
		{"other/web/server", "", "", `there is no pod or container "other/web/server"`},
		{"c01", "", "c01", ""}, // an earlier attempt by its ID
		{"c0", "", "", "means several containers: server (c01), server (c02), proxy (c03)"},
		{"postgres", "", "e05", ""},
		{"server", "", "", "means several containers"},
		{"zzz", "", "", `there is no pod or container "zzz"`},
		{"", "", "", "there is no pod or container"},
	} {
		got, err := pickContainers(findPods, findContainers, c.ref, c.name)
		ids := strings.ReplaceAll(names(got, func(c *runtimeapi.Container) string { return c.Id }), ",", "")
		switch {
		case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%q %q: %v, want %q", c.ref, c.name, err, c.says)
		case c.says == "" && (err != nil || ids != c.want):
			t.Errorf("%q %q: %s, %v; want %s", c.ref, c.name, ids, err, c.want)
		}
	}
}
