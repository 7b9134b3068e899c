package ocispec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// What a container finds is what was asked for, with both OCI runtimes.
func TestRealContainers(t *testing.T) {
	testkit.Root(t)
	testkit.Leftovers(t)
	host, err := ProbeHost()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	rootfs, data := busyboxRoot(t, filepath.Join(dir, "rootfs")), filepath.Join(dir, "data")
	write(t, data+"/file", "content\n")
	write(t, data+"/deep/keep", "") // a mount point, since the mount around it is read-only
	write(t, dir+"/hostname", "web-0\n")
	write(t, dir+"/noexec.json", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod","fchmodat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}`)
	if err := os.Symlink("data", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(dir+"/device", unix.S_IFCHR|0o666, int(unix.Mkdev(250, 77))); err != nil { // no driver has it
		t.Fatal(err)
	}
	for name, c := range realCases(dir, host) {
		for _, program := range []string{"crun", "runc"} {
			t.Run(name+" "+program, func(t *testing.T) {
				in := given(func(in *Input) {
					in.Capabilities, in.MinOOMScoreAdj, in.CgroupV2 = host.Capabilities, host.MinOOMScoreAdj, host.CgroupV2
					in.Rootfs, in.Namespaces, in.Image = rootfs, Namespaces{}, imagespec.ImageConfig{}
					in.CgroupsPath = fmt.Sprintf("/davit-test-%d-%s", os.Getpid(), program)
					in.Files = Files{Hostname: dir + "/hostname"}
					in.Container.WorkingDir = "work/dir"
					in.Container.Linux.Resources.OomScoreAdj = 100
					in.Container.Linux.Resources.MemoryLimitInBytes = 64 << 20
					in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/d", HostPath: dir + "/link"}}
				}, c.with)
				in.Container.Command = []string{"/bin/sh", "-c", c.script}
				if in.User, err = ResolveUser(rootfs, in.Container.Linux.SecurityContext, ""); err != nil {
					t.Fatal(err)
				}
				if in.Devices, err = HostDevices(); err != nil {
					t.Fatal(err)
				}
				out := runContainer(t, program, in)
				for _, want := range c.want {
					if !regexp.MustCompile(want).MatchString(out) {
						t.Errorf("no match for %q", want)
					}
				}
				if t.Failed() {
					t.Log(out)
				}
			})
		}
	}
}

// A realCase is a container and what its script must write.
type realCase struct {
	with   alter
	script string
	want   []string // regular expressions
}

func realCases(dir string, host Host) map[string]realCase {
	type sc = runtimeapi.LinuxContainerSecurityContext
	data := dir + "/data"
	return map[string]realCase{
		"default": {
			secure(func(s *sc) { s.Seccomp = &runtimeapi.SecurityProfile{} }),
			`id -u; echo at $(pwd); grep -E "^(CapEff|CapBnd|CapInh|CapAmb|Seccomp|NoNewPrivs):" /proc/self/status; cat /etc/hostname; echo $HOSTNAME $HOME $PATH
				cat /proc/self/oom_score_adj; cat /d/file; touch /d/new && rm /d/new; touch /sys/x || echo sys is read-only; echo pid $$`,
			[]string{
				"at /work/dir\n", `CapInh:\s0+\n`, `CapEff:\s00000000a80425fb\n`, `CapBnd:\s00000000a80425fb\n`, `CapAmb:\s0+\n`,
				`NoNewPrivs:\s0\nSeccomp:\s2`, "\nweb-0\nweb-0 /root /usr/local/sbin:", "\n100\n", "\ncontent\n", "sys is read-only", "pid 1\n",
			},
		},
		"confined": {
			func(in *Input) {
				s := in.Container.Linux.SecurityContext
				s.RunAsUsername, s.SupplementalGroups = "web", []int64{77}
				s.NoNewPrivs, s.ReadonlyRootfs = true, true
				s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/kcore", "/d2"}, []string{"/proc/sys"}
				s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"all"}, AddAmbientCapabilities: []string{"net_bind_service"}}
				s.SeccompProfilePath = "localhost/" + dir + "/noexec.json"
				in.Container.Mounts = []*runtimeapi.Mount{
					{ContainerPath: "/d/deep", HostPath: data},
					{ContainerPath: "/d2", HostPath: data},
					{ContainerPath: "/d", HostPath: dir + "/link", Readonly: true, MountOptions: []string{"noexec"}},
				}
			},
			`id; grep -E "^(CapEff|CapBnd|CapAmb|NoNewPrivs):" /proc/self/status; echo $HOME; touch /new 2>&1; touch /d/new 2>&1; ls /d2 | wc -l
				cat /d/deep/file; chmod 777 /tmp 2>&1; grep -o " /d ro,[a-z,]*" /proc/self/mountinfo; echo x 2>&1 > /proc/sys/kernel/domainname`,
			[]string{
				`^uid=1000\(web\) gid=1000\(web\) groups=77,1000\(web\),2000\(extra\)`, `CapEff:\s0+400\n`, `CapBnd:\s0+400\n`, `CapAmb:\s0+400\n`, `NoNewPrivs:\s1`,
				"\n/home/web\n", "/new: Read-only file system", "/d/new: Read-only file system", "\n0\n", "\ncontent\n", "chmod: /tmp: (Operation not supported|Not supported)",
				"/d ro,.*noexec", "domainname: Read-only",
			},
		},
		"privileged": {
			func(in *Input) {
				privileged(in)
				in.Container.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{}
				in.Container.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
			},
			`grep -E "^(CapEff|Seccomp):" /proc/self/status; grep " /sys " /proc/self/mountinfo; [ $$ != 1 ] && echo with the host`,
			[]string{`Seccomp:\s0\n`, "/sys rw", "with the host", fmt.Sprintf(`CapEff:\s%016x\n`, mask(host.Capabilities))},
		},
		"devices": {
			func(in *Input) {
				in.Container.Devices = []*runtimeapi.Device{{HostPath: dir + "/device", ContainerPath: "/dev/own", Permissions: "r"}}
			},
			`ls -l /dev/own; (exec 3< /dev/own) 2>&1; (exec 3> /dev/own) 2>&1; mknod /dev/mine c 250 78 && (exec 3< /dev/mine) 2>&1`,
			[]string{"250, *77", "can't open /dev/own: No such device", "can't create /dev/own: (Operation not permitted|Permission denied)", "can't open /dev/mine: Operation not permitted"},
		},
	}
}

func mask(caps []string) (m uint64) {
	for i, name := range capabilityNames {
		for _, c := range caps {
			if c == name {
				m |= 1 << i
			}
		}
	}
	return m
}

// runContainer runs a container to its end and returns what it wrote.
func runContainer(t *testing.T, program string, in Input) string {
	t.Helper()
	s, err := Make(in)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	bundle := t.TempDir()
	write(t, bundle+"/config.json", string(text))
	id := "davit-test-" + filepath.Base(filepath.Dir(bundle))
	cmd := exec.CommandContext(t.Context(), program, "--root", bundle+"/state", "run", "--bundle", bundle, id)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	_ = cmd.Run() // the script's code says nothing
	_ = exec.CommandContext(t.Context(), program, "--root", bundle+"/state", "delete", "--force", id).Run()
	return out.String()
}

// busyboxRoot makes a root file system of testkit's files at dir.
func busyboxRoot(t *testing.T, dir string) string {
	files, err := testkit.BusyboxFiles()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		at := filepath.Join(dir, f.Name)
		switch {
		case strings.HasSuffix(f.Name, "/"):
			err = os.MkdirAll(at, 0o755)
		case f.Hard:
			err = os.Link(filepath.Join(dir, f.Linkname), at)
		case f.Linkname != "":
			err = os.Symlink(f.Linkname, at)
		default:
			write(t, at, string(f.Data))
			if f.Mode != 0 {
				err = os.Chmod(at, os.FileMode(f.Mode))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
