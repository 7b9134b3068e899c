package kubelet

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A server is as much of Kubernetes' API as a kubelet needs to be a node: it
// keeps objects as they come, and tells of changes. It checks nothing.
type server struct {
	url string

	mu      sync.Mutex
	changed *sync.Cond
	objects map[string]map[string]any // by path
	history []change                  // index + 1 is the resource version
	ended   bool
}

type change struct {
	collection, kind string // the latter ADDED, MODIFIED or DELETED
	object           []byte
}

// kinds are the collections that a kubelet asks for, by resource.
var kinds = map[string]string{
	"nodes": "Node", "pods": "Pod", "services": "Service", "leases": "Lease", "runtimeclasses": "RuntimeClass",
	"csidrivers": "CSIDriver", "csinodes": "CSINode", "events": "Event", "configmaps": "ConfigMap", "secrets": "Secret",
	"resourceslices": "ResourceSlice", "resourceclaims": "ResourceClaim",
}

// newServer serves until the test's end.
func newServer(t *testing.T) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{url: "http://" + l.Addr().String(), objects: map[string]map[string]any{}}
	s.changed = sync.NewCond(&s.mu)
	web := &http.Server{Handler: s}
	ended := make(chan error, 1)
	go func() { ended <- web.Serve(l) }()
	t.Cleanup(func() {
		s.mu.Lock()
		s.ended = true
		s.changed.Broadcast()
		s.mu.Unlock()
		_ = web.Close()
		<-ended
	})
	return s
}

// An address is what a URL's path names: an object, or a collection if it has no name.
type address struct {
	prefix, namespace, resource, name, sub string
}

// collection is the path of the object's collection, whatever the namespace.
func (p address) collection() string { return p.prefix + "/" + p.resource }

func (p address) key() string { return path.Join(p.collection(), p.namespace, p.name) }

// addressOf reads /api/v1/… or /apis/GROUP/VERSION/…
func addressOf(url string) address {
	parts := strings.Split(strings.Trim(url, "/"), "/")
	n := 2
	if parts[0] == "apis" {
		n = 3
	}
	if len(parts) <= n {
		return address{}
	}
	p := address{prefix: "/" + path.Join(parts[:n]...)}
	rest := parts[n:]
	if rest[0] == "namespaces" && len(rest) > 2 {
		p.namespace, rest = rest[1], rest[2:]
	}
	p.resource = rest[0]
	if len(rest) > 1 {
		p.name = rest[1]
	}
	if len(rest) > 2 {
		p.sub = rest[2]
	}
	return p
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	p := addressOf(r.URL.Path)
	query := r.URL.Query()
	body, err := io.ReadAll(r.Body)
	switch {
	case err != nil:
		return
	case kinds[p.resource] == "":
		refuse(w, http.StatusNotFound, "NotFound")
	case query.Get("watch") != "" && query.Get("sendInitialEvents") != "":
		refuse(w, http.StatusUnprocessableEntity, "Invalid") // clients then list and watch
	case query.Get("watch") != "":
		s.watch(w, r, p, query.Get("resourceVersion"))
	case r.Method == http.MethodGet && p.name == "":
		s.list(w, p)
	case r.Method == http.MethodGet:
		s.reply(w, s.get(p.key()))
	case r.Method == http.MethodDelete:
		s.reply(w, s.drop(p))
	default:
		s.reply(w, s.write(p, r.Method, body))
	}
}

func (s *server) reply(w http.ResponseWriter, object []byte) {
	if object == nil {
		refuse(w, http.StatusNotFound, "NotFound")
		return
	}
	_, _ = w.Write(object)
}

func refuse(w http.ResponseWriter, code int, reason string) {
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d}`, reason, code)
}

func (s *server) get(key string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects[key] == nil {
		return nil
	}
	text, _ := json.Marshal(s.objects[key])
	return text
}

func (s *server) list(w http.ResponseWriter, p address) {
	s.mu.Lock()
	defer s.mu.Unlock()
	items := []any{}
	for key, object := range s.objects {
		if strings.HasPrefix(key, p.key()+"/") {
			items = append(items, object)
		}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"kind": kinds[p.resource] + "List", "apiVersion": version(p), "items": items,
		"metadata": map[string]any{"resourceVersion": strconv.Itoa(len(s.history))},
	})
}

// version is "v1" or "GROUP/VERSION".
func version(p address) string {
	return strings.TrimPrefix(strings.TrimPrefix(p.prefix, "/apis/"), "/api/")
}

// watch tells of changes after a version until the client goes.
func (s *server) watch(w http.ResponseWriter, r *http.Request, p address, after string) {
	next, _ := strconv.Atoi(after)
	gone := false
	defer s.onEnd(r, &gone)()
	w.WriteHeader(http.StatusOK)
	flush := func() { _ = http.NewResponseController(w).Flush() }
	flush()
	for {
		s.mu.Lock()
		for next >= len(s.history) && !gone && !s.ended {
			s.changed.Wait()
		}
		if gone || s.ended {
			s.mu.Unlock()
			return
		}
		news := s.history[next:]
		next = len(s.history)
		s.mu.Unlock()
		for _, c := range news {
			if c.collection == p.collection() {
				fmt.Fprintf(w, `{"type":%q,"object":%s}`+"\n", c.kind, c.object)
			}
		}
		flush()
	}
}

// onEnd sets gone when the request ends; stop it with what is returned.
func (s *server) onEnd(r *http.Request, gone *bool) func() {
	done := make(chan struct{})
	go func() {
		select {
		case <-r.Context().Done():
		case <-done:
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		*gone = true
		s.changed.Broadcast()
	}()
	return func() { close(done) }
}

// write creates, replaces or patches an object.
func (s *server) write(p address, method string, body []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	object := map[string]any{}
	if method != http.MethodPatch {
		if json.Unmarshal(body, &object) != nil {
			return nil
		}
		if p.name == "" {
			p.name, _ = object["metadata"].(map[string]any)["name"].(string)
		}
	} else {
		old := s.objects[p.key()]
		if old == nil {
			return nil
		}
		patch := map[string]any{}
		if json.Unmarshal(body, &patch) != nil {
			return nil
		}
		object = merged(old, patch).(map[string]any)
	}
	return s.keep(p, object)
}

// merged applies a strategic merge patch, as far as kubelets make use of it:
// objects are merged, and so are lists of things that have a type, by that.
func merged(old, patch any) any {
	changes, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	before, _ := old.(map[string]any)
	after := maps.Clone(before)
	if after == nil {
		after = map[string]any{}
	}
	for key, value := range changes {
		list, isList := value.([]any)
		switch {
		case strings.HasPrefix(key, "$"): // $setElementOrder and so on
		case value == nil:
			delete(after, key)
		case isList:
			after[key] = mergedList(before[key], list)
		default:
			after[key] = merged(before[key], value)
		}
	}
	return after
}

func mergedList(old any, patch []any) []any {
	kind := func(v any) any {
		object, _ := v.(map[string]any)
		return object["type"]
	}
	after, _ := old.([]any)
	after = slices.Clone(after)
	for _, value := range patch {
		if kind(value) == nil {
			return patch
		}
		i := slices.IndexFunc(after, func(v any) bool { return kind(v) == kind(value) })
		if i < 0 {
			after = append(after, value)
		} else {
			after[i] = merged(after[i], value)
		}
	}
	return after
}

// keep stores an object and tells of it. s.mu must be held.
func (s *server) keep(p address, object map[string]any) []byte {
	kind := "MODIFIED"
	if s.objects[p.key()] == nil {
		kind = "ADDED"
	}
	object["kind"], object["apiVersion"] = kinds[p.resource], version(p)
	meta, _ := object["metadata"].(map[string]any)
	if meta == nil {
		meta = map[string]any{}
		object["metadata"] = meta
	}
	if kind == "ADDED" {
		meta["uid"] = fmt.Sprintf("00000000-0000-4000-8000-%012d", len(s.history)+1)
		meta["creationTimestamp"] = time.Now().UTC().Format(time.RFC3339)
	}
	return s.tell(p, kind, object)
}

// tell writes history. s.mu must be held.
func (s *server) tell(p address, kind string, object map[string]any) []byte {
	object["metadata"].(map[string]any)["resourceVersion"] = strconv.Itoa(len(s.history) + 1)
	s.objects[p.key()] = object
	if kind == "DELETED" {
		delete(s.objects, p.key())
	}
	text, _ := json.Marshal(object)
	s.history = append(s.history, change{p.collection(), kind, text})
	s.changed.Broadcast()
	return text
}

// drop removes an object for good: a kubelet asks for that once a pod is over.
func (s *server) drop(p address) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	object := s.objects[p.key()]
	if object == nil {
		return nil
	}
	return s.tell(p, "DELETED", object)
}
