package doctor

import (
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

var storeChecks = []Check{
	{Name: "records", What: "davit's records, and what is left of pods without one", run: checkRecords, Faults: []Fault{
		{"records-set-aside", Warning, "davitd found records or other files of its own damaged, and moved them aside"},
		{"leftover-state", Warning, "the state directory has a pod or container that no record names"},
	}},
	{Name: "image-store", What: "davit's image database, and how layers are kept", run: checkImageStore, Faults: []Fault{
		{"image-store-damaged", Error, "the image database is no database: davitd will set it aside and pull all images again"},
		{"image-store-set-aside", Warning, "davitd found the image database damaged or gone, and began with an empty one"},
	}},
	{Name: "streaming-certificate", What: "the certificate of exec, attach and port-forward", run: checkCertificate, Faults: []Fault{
		{"streaming-certificate-unusable", Error, "certificate or key of streaming.tls_cert_file cannot be read or do not belong together"},
		{"streaming-certificate-expired", Error, "the streaming certificate is no longer valid, or not yet"},
		{"streaming-certificate-expires", Warning, "the streaming certificate is valid for less than a week"},
	}},
}

var deviceChecks = []Check{
	{Name: "devices", What: "CDI spec files and their devices, and the links that NVIDIA's need with systemd", run: checkDevices, Faults: []Fault{
		{"cdi-spec-invalid", Warning, "a CDI spec file is not JSON or YAML of a CDI spec: its devices cannot be asked for"},
		{"cdi-device-missing", Warning, "a CDI spec names a device that is not on the node: the driver is not loaded, or the spec is old"},
		{"nvidia-links-missing", Warning, "NVIDIA devices have no links in /dev/char: containers lose them at systemctl daemon-reload"},
	}},
}

func checkRecords(l *look) {
	d := l.davit()
	if !l.exists(d.Root) {
		l.skip("there is no %s", d.Root)
		return
	}
	if _, err := os.ReadDir(l.at(d.Root)); err != nil {
		l.unseen(d.Root, err)
		l.skip("%s: %v", d.Root, plain(err))
		return
	}
	if aside := slices.DeleteFunc(l.glob(d.Root+"/damaged/*"), ofImages); len(aside) > 0 {
		l.fault("records-set-aside", fmt.Sprintf("ls -l %[1]s/damaged; rm -r %[1]s/damaged   # once you have looked; what runs goes on by copies, what the rest held is released", d.Root),
			"%d files of davitd's were damaged, as %s", len(aside), aside[0])
	}
	var left []string
	for _, kind := range []string{"pods", "containers"} {
		for _, dir := range l.glob(d.State + "/" + kind + "/*") {
			// A pod that is being removed loses its record last.
			if !l.exists(filepath.Join(d.Root, kind, filepath.Base(dir), "record.json")) && l.exists(dir) {
				left = append(left, dir)
			}
		}
	}
	if left != nil {
		l.fault("leftover-state", "systemctl restart davitd   # what runs gets its record back, the rest is released; containers run on", "%d have no record, as %s", len(left), left[0])
	}
	l.okay("%d pods, %d containers", len(l.glob(d.Root+"/pods/*/record.json")), len(l.glob(d.Root+"/containers/*/record.json")))
}

// imageDatabase is the name of the image database, in images below the root, and
// of one that was set aside; with .gone behind it, of the note that it was lost.
const imageDatabase = "images.db"

// ofImages reports whether a file that was set aside is the image store's.
func ofImages(aside string) bool { return strings.HasPrefix(filepath.Base(aside), imageDatabase) }

func checkImageStore(l *look) {
	root := l.davit().Root
	path := filepath.Join(root, "images", imageDatabase)
	if aside := l.glob(filepath.Join(root, "damaged", imageDatabase+"*")); len(aside) > 0 {
		l.fault("image-store-set-aside", "rm "+strings.Join(aside, " ")+"   # images are pulled again when pods need them", "the database was damaged or lost: %s", aside[0])
	}
	file, err := os.Open(l.at(path))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		l.skip("there is no %s", path)
		return
	case err != nil:
		l.unseen(path, err)
		l.skip("%s: %v", path, plain(err))
		return
	}
	defer file.Close()
	if !validBolt(file) {
		l.fault("image-store-damaged", "systemctl restart davitd   # it sets the file aside and begins anew; images are pulled again", "%s has no valid header", path)
		return
	}
	if a := l.answer(); a.Name == "davit" && a.ImageLayers != "" && sameSocket(l.endpoint().path(), l.davit().Socket) {
		l.okay("%s; new layers are kept as %s", path, a.ImageLayers)
		return
	}
	l.okay("%s", path)
}

// validBolt reports whether one of the two headers is valid, as bbolt needs it:
// they are at the beginnings of the first two pages.
//
// bbolt: internal/common/meta.go, Validate; page.go, PageHeaderSize.
func validBolt(file io.ReaderAt) bool {
	const header, magic, version, length = 16, 0xED0CDAED, 2, 64
	for _, page := range []int64{0, 4096, 8192, 16384, 65536} { // the second page begins where the first one ends
		var meta [length]byte
		if _, err := file.ReadAt(meta[:], page+header); err != nil {
			continue
		}
		sum := fnv.New64a()
		_, _ = sum.Write(meta[:length-8])
		order := binary.NativeEndian
		if order.Uint32(meta[:]) == magic && order.Uint32(meta[4:]) == version && order.Uint64(meta[length-8:]) == sum.Sum64() {
			return true
		}
	}
	return false
}

const lastWeek = 7 * 24 * time.Hour

func checkCertificate(l *look) {
	d := l.davit()
	if d.CertFile == "" {
		l.okay("none is configured: sessions stay on this machine")
		return
	}
	const fix = "# issue it again, to the same files; davitd reads them when they change:\nopenssl x509 -noout -dates -in "
	cert, certErr := l.read(d.CertFile)
	key, keyErr := l.read(d.KeyFile)
	err := errors.Join(certErr, keyErr)
	if errors.Is(err, fs.ErrPermission) {
		l.unseen(d.CertFile, err)
		l.skip("%s: %v", d.CertFile, plain(err))
		return
	}
	var pair tls.Certificate
	if err == nil {
		pair, err = tls.X509KeyPair(cert, key)
	}
	if err != nil {
		l.fault("streaming-certificate-unusable", fix+d.CertFile, "%s, %s: %v", d.CertFile, d.KeyFile, err)
		return
	}
	leaf, now := pair.Leaf, l.Now()
	switch {
	case now.After(leaf.NotAfter):
		l.fault("streaming-certificate-expired", fix+d.CertFile, "%s was valid until %s", d.CertFile, leaf.NotAfter.Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		l.fault("streaming-certificate-expired", fix+d.CertFile, "%s is valid from %s on", d.CertFile, leaf.NotBefore.Format(time.RFC3339))
	case leaf.NotAfter.Sub(now) < lastWeek:
		l.fault("streaming-certificate-expires", fix+d.CertFile, "%s is valid until %s", d.CertFile, leaf.NotAfter.Format(time.RFC3339))
	default:
		l.okay("%s, valid until %s", d.CertFile, leaf.NotAfter.Format(time.DateOnly))
	}
}

// A cdiSpec is the part of a spec file that names files of the node.
type cdiSpec struct {
	Version string   `json:"cdiVersion"`
	Kind    string   `json:"kind"`
	Edits   cdiEdits `json:"containerEdits"`
	Devices []struct {
		Name  string   `json:"name"`
		Edits cdiEdits `json:"containerEdits"`
	} `json:"devices"`
}

type cdiEdits struct {
	Nodes []struct {
		Path     string `json:"path"`
		HostPath string `json:"hostPath"`
	} `json:"deviceNodes"`
}

func checkDevices(l *look) {
	specs := 0
	for _, dir := range l.davit().CDISpecDirs {
		for _, ext := range []string{"json", "yaml"} {
			for _, path := range l.glob(dir + "/*." + ext) {
				specs++
				l.checkSpec(path)
			}
		}
	}
	nvidia := l.glob("/dev/nvidia[0-9]*")
	if len(nvidia) > 0 && l.answer().CgroupDriver == "systemd" && !l.linked("nvidia") {
		l.fault("nvidia-links-missing", "nvidia-ctk system create-dev-char-symlinks --create-all", "%s has no link in /dev/char, by which systemd allows devices", nvidia[0])
	}
	switch specs {
	case 0:
		l.okay("no CDI specs")
	default:
		l.okay("CDI spec files: %d", specs)
	}
}

// linked reports whether /dev/char has a link to a device whose name begins so.
func (l *look) linked(name string) bool {
	for _, link := range l.glob("/dev/char/*") {
		if target, _ := os.Readlink(l.at(link)); strings.HasPrefix(filepath.Base(target), name) {
			return true
		}
	}
	return false
}

func (l *look) checkSpec(path string) {
	data, err := l.read(path)
	if err != nil {
		l.unseen(path, err)
		return
	}
	var spec cdiSpec
	if filepath.Ext(path) == ".json" {
		err = json.Unmarshal(data, &spec)
	} else {
		err = yaml.Unmarshal(data, &spec)
	}
	if err == nil && (spec.Kind == "" || spec.Version == "") {
		err = errors.New("it has no kind or no cdiVersion")
	}
	if err != nil {
		l.fault("cdi-spec-invalid", "mv "+path+" "+path+".disabled   # or generate it again, for NVIDIA's: nvidia-ctk cdi generate --output="+path, "%s: %v", path, err)
		return
	}
	all := []cdiEdits{spec.Edits}
	for _, d := range spec.Devices {
		all = append(all, d.Edits)
	}
	for _, edits := range all {
		for _, n := range edits.Nodes {
			device := n.HostPath
			if device == "" {
				device = n.Path
			}
			if !l.exists(device) {
				l.fault("cdi-device-missing", "# load the driver, or generate the spec again, for NVIDIA's: nvidia-ctk cdi generate --output="+path, "%s names %s, which is not there", path, device)
				return
			}
		}
	}
}
