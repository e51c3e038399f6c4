package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// version of Kubernetes, that of tools/go.mod: its programs have it linked in.
const version = "v1.36.3"

// components are the names that the program kubernetes has.
var components = []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"}

// sidecars are the programs that stand beside a CSI driver.
var sidecars = []string{
	"github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher",
	"github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
	"github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer",
	"github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter",
	"github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller",
}

// linked are the flags of the linker, by which programs know the version.
func linked() string {
	flags := "-s -w"
	for _, p := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		flags += fmt.Sprintf(" -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=1 -X %[1]s.gitMinor=36 -X %[1]s.gitTreeState=clean", p, version)
	}
	return flags
}

// Build makes all programs of a cluster in dir, from the modules of the tree at top, without cgo. It takes some ten minutes of two processors the
// first time, and seconds when the go command's cache has it all. Programs of the last time are replaced.
func Build(ctx context.Context, top, dir string) error {
	build := func(module string, packages ...string) error {
		argv := []string{"env", "CGO_ENABLED=0", "nice", "go", "-C", filepath.Join(top, module), "build", "-trimpath", "-ldflags", linked(), "-o", dir + "/"}
		_, err := lab.Run(ctx, append(argv, packages...)...)
		return err
	}
	err := errors.Join(
		build("deploy/kube/tools", append([]string{"./kubernetes", "./pause", "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"}, sidecars...)...),
		build("deploy/kube/tools/helm", "helm.sh/helm/v4/cmd/helm"),
		build("deploy/etcd", "."),
		build(".", "./deploy/kube/nodeinit", "./cmd/tandemd", "./cmd/tandemctl", "./cmd/tandem-controller"),
	)
	if err != nil {
		return err
	}
	for _, c := range components {
		link := filepath.Join(dir, c)
		if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.Symlink("kubernetes", link); err != nil {
			return err
		}
	}
	return nil
}

// Images that every node has: the sandbox of pods, and a shell.
const (
	PauseImage = "registry.local/pause:1"
	ShellImage = "registry.local/shell:1"
)

// SidecarImage is the image of one of the programs that stand beside a CSI driver, as csi-attacher, registry.local/csi-attacher:1. Like the ones that its
// project publishes it needs arguments only.
func SidecarImage(bin, program string) Image {
	return Image{
		Name: "registry.local/" + program + ":1", Files: map[string]string{"/" + program: filepath.Join(bin, program)}, Entrypoint: []string{"/" + program},
	}
}

// SidecarImages are those of the sidecars that the chart installs by default.
func SidecarImages(bin string) []Image {
	var all []Image
	for _, p := range []string{"csi-provisioner", "csi-attacher", "csi-resizer", "csi-snapshotter"} {
		all = append(all, SidecarImage(bin, p))
	}
	return all
}

// SnapshotCRDs returns what a Kubernetes has to be given before it has snapshots, of the version that the sidecars of the tree at top have: the manifests
// that their project publishes.
func SnapshotCRDs(ctx context.Context, top string) (string, error) {
	out, err := lab.Run(ctx, "go", "-C", filepath.Join(top, "deploy", "kube", "tools"), "list", "-m", "-f", "{{.Dir}}", "github.com/kubernetes-csi/external-snapshotter/client/v8")
	if err != nil {
		return "", err
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(out), "config", "crd", "*snapshot.storage.k8s.io_*.yaml"))
	if err != nil {
		return "", err
	}
	if len(files) != 6 {
		return "", fmt.Errorf("kube: the module of the snapshot client has %d CRDs in config/crd, want 6: %v", len(files), files)
	}
	var all strings.Builder
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&all, "---\n%s\n", data)
	}
	return all.String(), nil
}

// TandemImage is registry.local/tandem:1, with what the Dockerfile of the tree at top puts into it; root is made for its files.
func TandemImage(ctx context.Context, top, bin, root string) (Image, error) {
	m := Image{Name: "registry.local/tandem:1", Entrypoint: []string{"/usr/bin/tandemd"}}
	if _, err := lab.Run(ctx, filepath.Join(top, "deploy", "images", "root.sh"), root); err != nil {
		return m, err
	}
	err := m.AddTree(root, "/")
	for _, program := range []string{"tandemd", "tandemctl", "tandem-controller"} {
		m.Files["/usr/bin/"+program] = filepath.Join(bin, program)
	}
	return m, err
}

// baseImages are of programs that Build made in bin, and busybox.
func baseImages(ctx context.Context, bin string) ([]Image, error) {
	at := func(name string) string { return filepath.Join(bin, name) }
	shell := Image{Name: ShellImage, Links: map[string]string{}, Dirs: []string{"/tmp", "/etc", "/root"}, Entrypoint: []string{"/bin/sh"}}
	if err := shell.AddPrograms(ctx, "/bin/busybox"); err != nil {
		return nil, err
	}
	for _, applet := range []string{"sh", "cat", "cp", "dd", "df", "echo", "ls", "mkdir", "mount", "od", "rm", "sha256sum", "sleep", "stat", "sync", "test", "touch", "wc"} {
		shell.Links["/bin/"+applet] = "busybox"
	}
	return []Image{{Name: PauseImage, Files: map[string]string{"/pause": at("pause")}, Entrypoint: []string{"/pause"}}, shell}, nil
}
