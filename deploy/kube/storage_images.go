package kube

import (
	"context"
	"path"
	"path/filepath"
	"strings"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// BuildStorageTests makes Kubernetes' own tests of CSI drivers, what their pods run, and how they come into nodes, in dir: e2e.test, agnhost and nodeshell. See Build,
// which comes first.
func BuildStorageTests(ctx context.Context, top, dir string) error {
	module := filepath.Join(top, "deploy", "kube", "tools", "e2e")
	_, err := lab.Run(ctx, "env", "CGO_ENABLED=0", "nice", "go", "-C", module, "build", "-trimpath", "-ldflags", linked(), "-o", dir+"/", "k8s.io/kubernetes/test/images/agnhost", "./nodeshell")
	if err != nil {
		return err
	}
	// Without vet: it would be one of all that the test depends on.
	_, err = lab.Run(ctx, "env", "CGO_ENABLED=0", "nice", "go", "-C", module, "test", "-c", "-vet=off", "-trimpath", "-ldflags", linked(), "-o", filepath.Join(dir, "e2e.test"), ".")
	return err
}

// storageTestImages are the names and tags that those tests ask for at that version, with the programs that busybox has not, or not the same: nsenter goes into
// the node, whose libraries it must not take; dd is asked to keep nothing cached, by a shell that does not take busybox's instead.
var storageTestImages = map[string][]string{
	"agnhost:2.63.0": {"nsenter"}, "busybox:1.37.0-1": nil, "glibc-dns-testing:2.0.0": {"dash", "dd"}, "nginx:1.15-4": nil,
}

// StorageTestImages are those images. What runs in them is agnhost and shell commands: no more than that is in them.
func StorageTestImages(ctx context.Context, bin string) ([]Image, error) {
	out, err := lab.Run(ctx, "/bin/busybox", "--list")
	if err != nil {
		return nil, err
	}
	var all []Image
	for name, programs := range storageTestImages {
		m := Image{
			Name: "registry.k8s.io/e2e-test-images/" + name, Files: map[string]string{}, Links: map[string]string{}, Dirs: []string{"/tmp", "/etc", "/root", "/var/tmp"},
			Entrypoint: []string{"/bin/sh"},
		}
		if err := m.AddPrograms(ctx, append(programs, "/bin/busybox")...); err != nil {
			return nil, err
		}
		if strings.HasPrefix(name, "agnhost") {
			m.Files["/agnhost"] = filepath.Join(bin, "agnhost")
			m.Entrypoint, m.Cmd = []string{"/agnhost"}, []string{"pause"}
		}
		for applet := range strings.FieldsSeq(out) {
			if at := "/bin/" + applet; applet != "busybox" && m.Files[at] == "" {
				m.Links[at] = "busybox"
			}
		}
		for at := range m.Files {
			if path.Base(at) == "dash" {
				m.Links["/bin/sh"] = at
			}
		}
		all = append(all, m)
	}
	return all, nil
}
