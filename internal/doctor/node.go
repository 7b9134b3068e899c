package doctor

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Node is what the checks look at. ThisNode returns the real one.
type Node struct {
	Root    string   // all files are looked for below it; "/" for the real node
	Given   Given    // what the user says
	Version string   // of the program that asks; empty: unknown
	Uid     int      // of the process
	Program string   // of the process: davitd and davit-monitor may be beside it
	Path    []string // folders where programs are

	Now          func() time.Time
	Synchronised func() (bool, error) // whether the kernel holds the clock to be
	Space        func(path string) (Space, error)
	Connect      func(ctx context.Context, socket string) error           // nil if somebody accepts
	Ask          func(ctx context.Context, runtime, images string) Answer // endpoints
	// Run returns what a program prints, for its version only. env is added. An
	// *Exit is the error of a program that ran.
	Run func(ctx context.Context, env []string, program string, args ...string) (string, error)
	Try func(feature string) error // of the kernel: "pidfd", "nftables"
	// Dropping returns the chains of nftables, as "ip filter FORWARD", that drop
	// what the node forwards unless a rule says otherwise, where none names link.
	Dropping func(link string) ([]string, error)
}

// Given is what the user says of the runtime now, by flags and variables.
type Given struct {
	Runtime, Images Endpoint // zero: it is found
	Crictl          string   // crictl's configuration; empty: /etc/crictl.yaml
}

// An Endpoint is a runtime's socket.
type Endpoint struct {
	Address string `json:"address"` // unix:///…
	From    string `json:"from"`    // who says so
}

// path returns the socket's path.
func (e Endpoint) path() string { return strings.TrimPrefix(e.Address, "unix://") }

// Space is what a file system has.
type Space struct {
	Device           uint64 // the same for the same file system
	Bytes, FreeBytes uint64 // free for everybody but root's reserve
	Files, FreeFiles uint64 // 0 where it has no fixed number
}

// An Answer is what a runtime says of itself.
type Answer struct {
	Err          error // nobody could be asked, or it did not answer at all
	Name         string
	Version      string
	APIs         []string          // versions of the CRI that it serves
	Refused      map[string]string // of the other versions, what it answered
	Conditions   []Condition
	CgroupDriver string // empty: it does not say
	ImageErr     error  // the image service does not answer
	ImageDirs    []string
	NeedRestart  []string // davitd's keys that were reloaded, and do not count before a restart
	ImageLayers  string   // how davitd keeps layers, and why so if it is not the usual way
}

// A Condition is one of the CRI's RuntimeConditions.
type Condition struct {
	Type    string
	True    bool
	Message string // reason and message
}

// ThisNode is the node that the process runs on.
func ThisNode() *Node {
	program, _ := os.Executable()
	return &Node{
		Root: "/", Uid: os.Getuid(), Program: program,
		// A daemon's PATH often lacks these, and a user's the first.
		Path: append([]string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}, filepath.SplitList(os.Getenv("PATH"))...),
		Now:  time.Now, Synchronised: synchronised, Space: space, Connect: connect, Ask: ask, Run: runProgram, Try: try, Dropping: dropping,
	}
}

// kernel: adjtimex(2), TIME_ERROR and STA_UNSYNC.
func synchronised() (bool, error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return err == nil && state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, err
}

func space(path string) (Space, error) {
	var st unix.Stat_t
	var s unix.Statfs_t
	if err := errors.Join(unix.Stat(path, &st), unix.Statfs(path, &s)); err != nil {
		return Space{}, err
	}
	unit := uint64(s.Bsize)
	// As df has it: what root keeps for itself counts neither as free nor as there.
	return Space{
		Device: st.Dev, Bytes: (s.Blocks - s.Bfree + s.Bavail) * unit, FreeBytes: s.Bavail * unit,
		Files: s.Files, FreeFiles: s.Ffree,
	}, nil
}

func connect(ctx context.Context, socket string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return c.Close()
}

func runProgram(ctx context.Context, env []string, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = time.Second // a child of it may hold the pipe
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if ctx.Err() != nil {
		return out.String(), errSlow
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = &Exit{cmp.Or(strings.TrimSpace(errOut.String()), err.Error())}
	}
	return out.String(), err
}

// errSlow is Run's error when a program takes too long; that may be the load.
var errSlow = fmt.Errorf("no answer within %v", runLimit)

// An Exit is a program's own error: it ran, and said this.
type Exit struct{ Text string }

func (e *Exit) Error() string { return e.Text }

// try uses a feature without leaving a trace.
func try(feature string) error {
	switch feature {
	case "pidfd":
		fd, err := unix.PidfdOpen(os.Getpid(), 0)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	case "nftables":
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	}
	return fmt.Errorf("unknown feature %q", feature)
}

// plain is the system's error alone, where the text around it names the rest.
func plain(err error) error {
	var number unix.Errno
	if errors.As(err, &number) {
		return number
	}
	return err
}

// kernel: uapi/linux/netfilter/nfnetlink.h, struct nfgenmsg; netfilter.h,
// NF_DROP; netlink.h, NLA_TYPE_MASK.
const (
	nfgenmsgBytes = 4
	nfDrop        = 0
	typeMask      = 1<<14 - 1
)

// dropping asks the kernel for nftables' chains and rules. It needs
// CAP_NET_ADMIN.
//
// kernel: uapi/linux/netfilter/nf_tables.h, NFTA_CHAIN_* and NFTA_RULE_*.
func dropping(link string) ([]string, error) {
	chains, err := dump(unix.NFT_MSG_GETCHAIN)
	if err != nil {
		return nil, err
	}
	rules, err := dump(unix.NFT_MSG_GETRULE)
	if err != nil {
		return nil, err
	}
	families := map[byte]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}
	text := func(b []byte) string { return string(bytes.TrimRight(b, "\x00")) }
	var found []string
	for _, m := range chains {
		family, a := families[m[0]], attributes(m[nfgenmsgBytes:])
		hook, policy := attributes(a[unix.NFTA_CHAIN_HOOK])[unix.NFTA_HOOK_HOOKNUM], a[unix.NFTA_CHAIN_POLICY]
		if family == "" || len(hook) != 4 || len(policy) != 4 ||
			binary.BigEndian.Uint32(hook) != unix.NF_INET_FORWARD || binary.BigEndian.Uint32(policy) != nfDrop {
			continue
		}
		table := text(a[unix.NFTA_CHAIN_TABLE])
		named := slices.ContainsFunc(rules, func(rule []byte) bool {
			return rule[0] == m[0] && text(attributes(rule[nfgenmsgBytes:])[unix.NFTA_RULE_TABLE]) == table && bytes.Contains(rule, []byte(link))
		})
		if !named {
			found = append(found, family+" "+table+" "+text(a[unix.NFTA_CHAIN_NAME]))
		}
	}
	return found, nil
}

// dump returns all of nftables' objects of a kind, as messages that begin with
// their family.
func dump(kind uint16) ([][]byte, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	request := make([]byte, unix.NLMSG_HDRLEN+nfgenmsgBytes)
	binary.NativeEndian.PutUint32(request, uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], unix.NFNL_SUBSYS_NFTABLES<<8|kind)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var all [][]byte
	for buf := make([]byte, 1<<16); ; { // the kernel fills 32 KiB at most
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return nil, err
		}
		messages, err := syscall.ParseNetlinkMessage(bytes.Clone(buf[:n]))
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			switch {
			case m.Header.Type == unix.NLMSG_DONE:
				return all, nil
			case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4:
				return nil, unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
			case len(m.Data) >= nfgenmsgBytes:
				all = append(all, m.Data)
			}
		}
	}
}

// attributes returns netlink attributes by type. The last one of a type counts.
func attributes(data []byte) map[uint16][]byte {
	all := map[uint16][]byte{}
	for len(data) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(data))
		if length < unix.SizeofNlAttr || length > len(data) {
			break
		}
		all[binary.NativeEndian.Uint16(data[2:])&typeMask] = data[unix.SizeofNlAttr:length]
		data = data[min((length+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(data)):]
	}
	return all
}
