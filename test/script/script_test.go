// Package script drives the real programs, as a person at a terminal would:
// each testdata/*.txtar is a session with a davitd of its own.
//
// In a script, beside what testscript offers:
//
//	davit ARGS...        the program, pointed at this script's davitd
//	daemon start|stop|kill|restart|log
//	                     davitd alone; start takes the file config.toml if there is one
//	monitor kill         davit-monitor, by SIGKILL; the keeper starts it again
//	registry start|stop  the registry that $REGISTRY names
//	slow start|release   the same as $SLOW: blobs come by half, until they are released
//	serve NAME [SPEC.json]
//	                     push an image, busybox or as described, as $REGISTRY/NAME
//	archive NAME FILE    write a docker-archive with busybox as NAME
//	damage DIR           change a byte in the middle of the largest file there
//	await SECONDS 'PATTERN' COMMAND ARGS...
//	                     repeat the command until its output matches
//	fetch URL            print a page; waits until somebody listens
//	empty DIR...         require that directories have no entries, or are not there
//
// $IMAGE is busybox, served but not pulled.
package script

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/davit-runtime/davit/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// serially runs scripts one after the other: they share one network namespace,
// so that two of them could not have the same host port or bridge.
type serially struct{ *testing.T }

func (serially) Parallel() {}

func (s serially) Run(name string, f func(testscript.T)) {
	s.T.Run(name, func(t *testing.T) {
		testkit.Leftovers(t)
		f(serially{t})
	})
}

func (s serially) Verbose() bool { return testing.Verbose() }

// A session is what belongs to one script.
type session struct {
	daemon   *testkit.Daemon
	registry *testkit.Registry
	slow     *slow
	dir      string
}

func TestScripts(t *testing.T) {
	testkit.Root(t)
	bin, err := testkit.Binaries()
	if err != nil {
		t.Fatal(err)
	}
	testscript.RunT(serially{t}, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("DAVIT_UPDATE") != "",
		Setup:               func(env *testscript.Env) error { return setup(env, bin) },
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"davit":    davit,
			"daemon":   daemon,
			"monitor":  monitor,
			"registry": registry,
			"slow":     slowRegistry,
			"serve":    serve,
			"archive":  archive,
			"await":    await,
			"damage":   damage,
			"fetch":    fetch,
			"empty":    isEmpty,
		},
	})
}

func setup(env *testscript.Env, bin string) (err error) {
	s := &session{dir: filepath.Join(env.WorkDir, ".session")}
	env.Values["session"] = s
	if err := os.MkdirAll(filepath.Join(s.dir, "registry"), 0o755); err != nil {
		return err
	}
	if s.registry, err = testkit.StartRegistry(filepath.Join(s.dir, "registry"), "127.0.0.1:0"); err != nil {
		return err
	}
	env.Defer(func() {
		s.registry.Stop()
		if s.daemon != nil {
			if err := s.daemon.Close(); err != nil {
				env.T().(serially).Errorf("end davitd: %v", err)
			}
		}
	})
	img, err := testkit.Busybox()
	if err != nil {
		return err
	}
	image := s.registry.Host + "/busybox:1"
	if err := testkit.Push(image, img); err != nil {
		return err
	}
	env.Setenv("REGISTRY", s.registry.Host)
	env.Setenv("IMAGE", image)
	env.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	env.Setenv("HOME", env.WorkDir)
	return fillIn(env.WorkDir, map[string]string{"$IMAGE": image, "$REGISTRY": s.registry.Host, "$WORK": env.WorkDir})
}

// fillIn replaces names in the script's manifests and configuration files.
func fillIn(dir string, values map[string]string) error {
	for _, pattern := range []string{"*.yaml", "*.toml", "*.json", "*.conflist"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			for name, value := range values {
				text = []byte(strings.ReplaceAll(string(text), name, value))
			}
			if err := os.WriteFile(file, text, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

func of(ts *testscript.TestScript) *session { return ts.Value("session").(*session) }

// davit runs the program in the foreground. `! davit` wants it to fail.
func davit(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) > 0 && args[0] == "play" {
		dir := of(ts).dir
		args = append([]string{"play", "--play-dir", filepath.Join(dir, "play"), "--log-dir", filepath.Join(dir, "logs")}, args[1:]...)
	}
	err := ts.Exec("davit", args...)
	switch {
	case err == nil && neg:
		ts.Fatalf("davit %s succeeded", strings.Join(args, " "))
	case err != nil && !neg:
		ts.Fatalf("davit %s: %v", strings.Join(args, " "), err)
	}
}

func daemon(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if len(args) != 1 {
		ts.Fatalf("usage: daemon start|stop|kill|restart|reload|log")
	}
	if s.daemon == nil {
		if args[0] != "start" {
			ts.Fatalf("the daemon has not been started")
		}
		config, err := os.ReadFile(ts.MkAbs("config.toml"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			ts.Fatalf("%v", err)
		}
		s.daemon, err = testkit.StartDaemon(filepath.Join(s.dir, "davit"), string(config))
		ts.Check(err)
		ts.Setenv("CONTAINER_RUNTIME_ENDPOINT", "unix://"+s.daemon.Socket)
		ts.Setenv("ROOT", s.daemon.Root)
		ts.Setenv("STATE", s.daemon.State)
		return
	}
	switch args[0] {
	case "start":
		ts.Check(s.daemon.Start())
	case "stop":
		ts.Check(s.daemon.Stop())
	case "kill":
		s.daemon.Kill()
	case "restart":
		ts.Check(s.daemon.Stop())
		ts.Check(s.daemon.Start())
	case "reload": // with what config.toml has become
		config, err := os.ReadFile(ts.MkAbs("config.toml"))
		ts.Check(err)
		ts.Check(os.WriteFile(s.daemon.Config, config, 0o600))
		ts.Check(unix.Kill(s.daemon.Pids()["davitd"][0], unix.SIGHUP))
	case "log":
		_, _ = io.WriteString(ts.Stdout(), s.daemon.Log())
	default:
		ts.Fatalf("unknown: daemon %s", args[0])
	}
}

func monitor(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 || args[0] != "kill" {
		ts.Fatalf("usage: monitor kill")
	}
	pids := of(ts).daemon.Pids()["serve"]
	if len(pids) != 1 {
		ts.Fatalf("one davit-monitor should serve: %v", pids)
	}
	ts.Check(unix.Kill(pids[0], unix.SIGKILL))
}

func registry(ts *testscript.TestScript, _ bool, args []string) {
	switch strings.Join(args, " ") {
	case "start":
		ts.Check(of(ts).registry.Start())
	case "stop":
		of(ts).registry.Stop()
	default:
		ts.Fatalf("usage: registry start|stop")
	}
}

// imageSpec is what serve reads: an image in few words.
type imageSpec struct {
	Config      v1.Config
	Files       map[string]string // beside busybox
	Compression string
	Docker      bool
	Arch        string
	Bare        string   // nothing but busybox, as this program: neither tar nor shell
	Index       []string // instead: an index with an image for each architecture
	Artifact    string   // instead: an artifact of that type, of the files
}

func serve(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: serve NAME [SPEC.json]")
	}
	var spec imageSpec
	if len(args) == 2 {
		ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &spec))
	}
	ref := of(ts).registry.Host + "/" + args[0]
	if spec.Artifact != "" {
		img, err := spec.artifact()
		ts.Check(err)
		ts.Check(testkit.Push(ref, img))
		return
	}
	if len(spec.Index) == 0 {
		img, err := spec.build(spec.Arch)
		ts.Check(err)
		ts.Check(testkit.Push(ref, img))
		return
	}
	var images []v1.Image
	for _, arch := range spec.Index {
		img, err := spec.build(arch)
		ts.Check(err)
		images = append(images, img)
	}
	index, err := testkit.NewIndex(images...)
	ts.Check(err)
	ts.Check(testkit.PushIndex(ref, index))
}

func (s imageSpec) build(arch string) (v1.Image, error) {
	files, err := testkit.BusyboxFiles()
	if err != nil {
		return nil, err
	}
	if s.Bare != "" {
		files = slices.DeleteFunc(files, func(f testkit.File) bool { return f.Name != "bin/busybox" })
		files[0].Name = s.Bare
	}
	for name, text := range s.Files {
		files = append(files, testkit.File{Name: name, Data: []byte(text), Mode: 0o755})
	}
	return testkit.NewImage(testkit.ImageSpec{
		Layers: [][]testkit.File{files}, Config: s.Config, Compression: s.Compression, Docker: s.Docker, Arch: arch,
	})
}

// artifact has each file as a blob with its name as title.
func (s imageSpec) artifact() (v1.Image, error) {
	var all []mutate.Addendum
	for name, text := range s.Files {
		all = append(all, mutate.Addendum{
			Layer: static.NewLayer([]byte(text), "application/octet-stream"), Annotations: map[string]string{"org.opencontainers.image.title": name},
		})
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.MediaType(s.Artifact))
	return mutate.Append(img, all...)
}

func archive(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: archive NAME FILE")
	}
	tag, err := name.NewTag(args[0])
	ts.Check(err)
	img, err := testkit.Busybox()
	ts.Check(err)
	ts.Check(tarball.WriteToFile(ts.MkAbs(args[1]), tag, img))
}

func damage(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: damage DIR")
	}
	entries, err := os.ReadDir(args[0])
	ts.Check(err)
	var largest string
	var size int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && info.Size() > size {
			largest, size = filepath.Join(args[0], e.Name()), info.Size()
		}
	}
	f, err := os.OpenFile(largest, os.O_RDWR, 0)
	ts.Check(err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, size/2)
	ts.Check(err)
	b[0] ^= 1
	_, err = f.WriteAt(b, size/2)
	ts.Check(err)
}

func await(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: await SECONDS PATTERN COMMAND ARGS...")
	}
	seconds, err := strconv.ParseFloat(args[0], 64)
	ts.Check(err)
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	deadline := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	bin, err := testkit.Binaries()
	ts.Check(err)
	for {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		program := args[2]
		if program == "davit" {
			program = filepath.Join(bin, program)
		}
		cmd := exec.CommandContext(ctx, program, args[3:]...)
		cmd.Dir = ts.Getenv("WORK")
		cmd.Env = append(os.Environ(), "CONTAINER_RUNTIME_ENDPOINT="+ts.Getenv("CONTAINER_RUNTIME_ENDPOINT"))
		out, _ := cmd.CombinedOutput()
		cancel()
		if pattern.Match(out) != neg {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("after %s s the output of %s is\n%s", args[0], strings.Join(args[2:], " "), out)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func fetch(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: fetch URL")
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var body []byte
	resp, err := client.Get(args[0])
	for deadline := time.Now().Add(10 * time.Second); !neg && errors.Is(err, unix.ECONNREFUSED) && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		resp, err = client.Get(args[0])
	}
	if err == nil {
		defer resp.Body.Close()
		body, err = io.ReadAll(resp.Body)
	}
	if err != nil && !neg {
		ts.Fatalf("fetch: %v", err)
	}
	if err == nil && neg {
		ts.Fatalf("%s answers: %s", args[0], body)
	}
	_, _ = fmt.Fprint(ts.Stdout(), string(body))
}

func isEmpty(ts *testscript.TestScript, _ bool, args []string) {
	for _, dir := range args {
		entries, err := os.ReadDir(ts.MkAbs(dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			ts.Fatalf("%v", err)
		}
		for _, e := range entries {
			ts.Fatalf("%s has %s", dir, e.Name())
		}
	}
}
