package play

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	corev1 "k8s.io/api/core/v1"

	"github.com/davit-runtime/davit/internal/fault"
	"github.com/davit-runtime/davit/internal/store"
)

// recordFile marks a directory as made by play; it is written before anything
// else, so that Clean finds all that was made.
const (
	recordFile    = "play.json"
	recordVersion = 1
)

// UsualDir is where files of played pods are unless the user says otherwise.
const UsualDir = "/var/lib/davit-play"

const mountInfo = "/proc/self/mountinfo"

// Files names the files of one played pod.
type Files struct {
	Dir  string `json:"-"`    // <play-dir>/<uid>: volumes, hosts, termination messages
	Logs string `json:"logs"` // <log-dir>/<namespace>_<name>_<uid>
}

func filesOf(pod *corev1.Pod, playDir, logDir string) Files {
	return Files{
		Dir:  filepath.Join(playDir, string(pod.UID)),
		Logs: filepath.Join(logDir, fmt.Sprintf("%s_%s_%s", pod.Namespace, pod.Name, pod.UID)),
	}
}

func (f Files) volume(name string) string { return filepath.Join(f.Dir, "volumes", name) }
func (f Files) hosts() string             { return filepath.Join(f.Dir, "etc-hosts") }
func (f Files) message(container string) string {
	return filepath.Join(f.Dir, "containers", container, "termination-log")
}

// claim makes the directory and the record of a new pod. It refuses a
// directory that exists: it belongs to another pod of the same uid.
func (f Files) claim() error {
	const tries = 10 // dropEmpty may come in between
	var err error
	for range tries {
		if err = os.MkdirAll(filepath.Dir(f.Dir), 0o755); err != nil {
			return err
		}
		if err = os.Mkdir(f.Dir, 0o755); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("a pod with the same uid was played before and not removed: %w", err)
	}
	if err != nil {
		return err
	}
	if err := store.SaveJSONDurable(filepath.Join(f.Dir, recordFile), recordVersion, f); err != nil {
		return errors.Join(err, os.RemoveAll(f.Dir))
	}
	return nil
}

// fill makes all other files.
func (f Files) fill(pod *corev1.Pod) error {
	for c := range eachContainer(&pod.Spec) {
		if err := os.MkdirAll(filepath.Join(f.Logs, c.Name), 0o755); err != nil {
			return err
		}
		if err := writeShared(f.message(c.Name)); err != nil {
			return err
		}
	}
	for i := range pod.Spec.Volumes {
		if err := f.createVolume(&pod.Spec, &pod.Spec.Volumes[i]); err != nil {
			return fmt.Errorf("volume %s: %w", pod.Spec.Volumes[i].Name, err)
		}
	}
	return nil
}

// writeShared makes an empty file that any user of a container may write.
func writeShared(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := createEmpty(path); err != nil {
		return err
	}
	return os.Chmod(path, 0o666) // past the umask
}

func createEmpty(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// Clean removes a played pod's files: dir and the logs that it names. A
// directory that play did not make is refused; one that is gone is no error.
func Clean(dir, uid string) error {
	if uid == "" || filepath.Base(dir) != uid || !filepath.IsAbs(dir) {
		return fmt.Errorf("%q is not the directory of a played pod with uid %q", dir, uid)
	}
	var f Files
	err := store.LoadJSON(filepath.Join(dir, recordFile), recordVersion, &f)
	if fault.Is(err, fault.NotFound) {
		err = os.Remove(dir) // empty, if claim was cut short
		dropEmpty(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if err != nil {
		return err
	}
	if !strings.HasSuffix(f.Logs, "_"+uid) || !filepath.IsAbs(f.Logs) {
		return fmt.Errorf("%s names %q as log directory, which is not this pod's", filepath.Join(dir, recordFile), f.Logs)
	}
	if err := noMountsBelow(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(f.Logs); err != nil {
		return err
	}
	if err := removeRecordLast(dir); err != nil {
		return err
	}
	dropEmpty(dir)
	return nil
}

// dropEmpty removes the directory of played pods with the last of them, where
// that is the usual one: another is the user's, who may have made it.
func dropEmpty(dir string) {
	if parent := filepath.Dir(dir); filepath.Base(parent) == filepath.Base(UsualDir) {
		_ = os.Remove(parent) // fails if there are more
	}
}

// removeRecordLast empties dir so that a second Clean can end what a first
// one began.
func removeRecordLast(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == recordFile {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// noMountsBelow keeps Clean from deleting what a container mounted into a
// volume with mountPropagation Bidirectional. man 5 proc_pid_mountinfo.
func noMountsBelow(dir string) error {
	data, err := os.ReadFile(mountInfo)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			return fmt.Errorf("%s is still mounted; unmount it and try again", f[4])
		}
	}
	return nil
}

// createVolume makes an emptyDir, or checks a hostPath. An image is the
// runtime's to mount.
//
// Source: Kubernetes, pkg/volume/{emptydir,hostpath}; fsGroup: pkg/volume/volume_linux.go.
func (f Files) createVolume(s *corev1.PodSpec, v *corev1.Volume) error {
	if v.HostPath != nil {
		return checkHostPath(v.HostPath.Path, *v.HostPath.Type)
	}
	if v.Image != nil {
		return nil
	}
	dir := f.volume(v.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	mode := fs.FileMode(0o777)
	if group := s.SecurityContext.FSGroup; group != nil {
		if err := os.Chown(dir, -1, int(*group)); err != nil {
			return err
		}
		mode |= fs.ModeSetgid
	}
	return os.Chmod(dir, mode) // past the umask
}

// checkHostPath makes the path where its type says so, and otherwise requires
// it to be there and of its type.
func checkHostPath(path string, kind corev1.HostPathType) error {
	info, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	absent := err != nil
	switch {
	case kind == corev1.HostPathUnset:
		return nil
	case absent && kind == corev1.HostPathDirectoryOrCreate:
		return os.MkdirAll(path, 0o755)
	case absent && kind == corev1.HostPathFileOrCreate:
		return createEmpty(path)
	case absent:
		return fmt.Errorf("%s does not exist; its type is %s", path, kind)
	}
	fits := map[corev1.HostPathType]bool{
		corev1.HostPathDirectoryOrCreate: info.IsDir(),
		corev1.HostPathDirectory:         info.IsDir(),
		corev1.HostPathFileOrCreate:      info.Mode().IsRegular(),
		corev1.HostPathFile:              info.Mode().IsRegular(),
		corev1.HostPathSocket:            info.Mode().Type() == fs.ModeSocket,
		corev1.HostPathCharDev:           info.Mode().Type() == fs.ModeDevice|fs.ModeCharDevice,
		corev1.HostPathBlockDev:          info.Mode().Type() == fs.ModeDevice,
	}
	if !fits[kind] {
		return fmt.Errorf("%s is not a %s", path, kind)
	}
	return nil
}

// mountSource returns the host path of a volume mount. A subPath is resolved
// below the volume, whatever links lie on the way, and made if it is absent.
func (f Files) mountSource(v *corev1.Volume, subPath string) (string, error) {
	root := f.volume(v.Name)
	if v.HostPath != nil {
		root = v.HostPath.Path
	}
	if subPath == "" {
		return root, nil
	}
	source, err := securejoin.SecureJoin(root, subPath)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(root)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(source); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(source, info.Mode().Perm()); err != nil {
			return "", err
		}
		return source, os.Chmod(source, info.Mode().Perm()|info.Mode()&fs.ModeSetgid)
	}
	return source, nil
}
