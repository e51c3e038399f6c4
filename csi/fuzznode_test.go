package csi

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// sandbox is a directory with what a kubelet has, beside what is nobody's business of a driver: files, directories and links, empty and full,
// and what others have mounted.
type sandbox struct {
	*host
	top        string // of all, and of the paths in requests
	ids        []string
	foreign    string // where something of others is mounted
	foreignDev string
}

func newSandbox(t *testing.T) *sandbox {
	t.Helper()
	c := newCluster()
	h := &host{Driver: New(Options{Node: "node-a", Domain: "a", Backend: c, Mounter: c.machine}), c: c}
	s := &sandbox{host: h, top: filepath.Join(t.TempDir(), "a", "b", "c", "d", "e", "f")} // deep: a path that leads out leads to nothing
	for _, dir := range []string{"kubelet/pods", "others/empty", "others/full/dir", "others/mounted", "kubelet/staged"} {
		if err := os.MkdirAll(filepath.Join(s.top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"others/full/file": "theirs", "others/empty-file": "", "kubelet/file": "theirs"} {
		if err := os.WriteFile(filepath.Join(s.top, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"kubelet/out": "../others", "kubelet/out-file": "../others/full/file", "kubelet/dangling": "../others/new", "kubelet/loop": "loop"} {
		if err := os.Symlink(to, filepath.Join(s.top, name)); err != nil {
			t.Fatal(err)
		}
	}
	s.foreign, s.foreignDev = filepath.Join(s.top, "others/mounted"), "/dev/loop-of-others"
	s.c.machine.Plug(s.foreignDev, "/images/of-others").Holds = "xfs"
	if err := s.c.machine.Mount(t.Context(), s.foreignDev, s.foreign, "xfs", nil); err != nil {
		t.Fatal(err)
	}
	for i, vc := range []*spec.VolumeCapability{mounted("xfs", writer), mounted("ext4", writer), raw()} {
		s.ids = append(s.ids, s.published(t, fmt.Sprint("vol-", i), vc).GetId())
	}
	used := s.c.volumes[s.ids[0]]
	if _, err := s.NodeStageVolume(t.Context(), &spec.NodeStageVolumeRequest{VolumeId: used.GetId(), StagingTargetPath: s.staged(), VolumeCapability: mounted("xfs", writer)}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *sandbox) staged() string { return filepath.Join(s.top, "kubelet", "staged") }

// tree is all that is below top, and what is mounted there.
func (s *sandbox) tree(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	if err := filepath.WalkDir(s.top, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		text := fi.Mode().String()
		switch {
		case fi.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += " " + string(data)
		case fi.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " " + to
		}
		found[path] = text
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	points, err := s.c.machine.List()
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range points {
		found[fmt.Sprint("mount ", i)] = fmt.Sprintf("%+v", p)
	}
	return found
}

// path makes what a fuzzer says a path of the sandbox: absolute ones begin there.
func (s *sandbox) path(said string) string {
	if strings.HasPrefix(said, "/") {
		return s.top + said
	}
	return said
}

// allowedCodes are those that the specification has for what a node is asked.
var allowedCodes = []codes.Code{codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.AlreadyExists, codes.Aborted, codes.OutOfRange, codes.Internal}

// FuzzNode asks a node for anything, anywhere, in a sandbox. What is refused changes nothing. What is done changes what is at the path that was named, which is
// nobody else's, and nothing beside it.
func FuzzNode(f *testing.F) {
	paths := []string{
		"", "/", "x", "/kubelet", "/kubelet/pods/new", "/kubelet/pods", "/kubelet/../others/full", "/kubelet/out", "/kubelet/out/full", "/kubelet/out/empty", "/kubelet/out-file", "/kubelet/dangling",
		"/kubelet/loop/x", "/kubelet/staged", "/kubelet/staged/inside", "/others/mounted", "/others/empty-file", "/others/full/file", "/others/full/file/x", "/kubelet/file", "//kubelet/pods/x", "/kubelet/pods/x/",
		"/kubelet/./pods/x", "/no/such/parent", "../x", "/kubelet/pods/\x00", "/kubelet/pods/a\nb", "/kubelet/pods/\xff", "/kubelet/pods/ -o remount", "/" + strings.Repeat("x", 300), "/" + strings.Repeat("y/", 2100) + "z",
	}
	for call := range uint8(4) {
		for _, p := range paths {
			f.Add(call, uint8(0), p, p, "", "", uint8(1))
		}
	}
	for call := range uint8(7) {
		f.Add(call, uint8(0), "/kubelet/pods/new", "/kubelet/staged", "", "", uint8(1))
		f.Add(call, uint8(1), "/kubelet/pods/new", "/kubelet/pods/two", "ext4", "ro", uint8(1))
		f.Add(call, uint8(2), "/kubelet/pods/new", "/kubelet/staged", "block", "", uint8(1))
		f.Add(call, uint8(200), "../../x", "/kubelet/staged", "xfs", "x-password=s3cr3t", uint8(255))
	}
	f.Fuzz(func(t *testing.T, call, volume uint8, target, staging, fs, option string, mode uint8) {
		s := newSandbox(t)
		id := "00000009-0000-4000-8000-000000000007" // no such volume
		if int(volume) < len(s.ids) {
			id = s.ids[volume]
		} else if volume == 200 {
			id = target
		}
		vc := mounted(fs, accessMode(mode%9))
		if option != "" {
			vc.GetMount().MountFlags = []string{option}
		}
		if fs == "block" {
			vc = raw()
		}
		target, staging = s.path(target), s.path(staging)
		before := s.tree(t)
		var err error
		named := []string{target}
		switch call % 7 {
		case 0:
			named = []string{staging}
			_, err = s.asked(t, "NodeStageVolume", &spec.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: staging, VolumeCapability: vc})
		case 1:
			named = []string{staging}
			_, err = s.asked(t, "NodeUnstageVolume", &spec.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: staging})
		case 2:
			_, err = s.asked(t, "NodePublishVolume", &spec.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: staging, TargetPath: target, VolumeCapability: vc, Readonly: mode > 128})
		case 3:
			_, err = s.asked(t, "NodeUnpublishVolume", &spec.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target})
		case 4:
			named = nil
			_, err = s.asked(t, "NodeGetVolumeStats", &spec.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: target, StagingTargetPath: staging})
		case 5:
			named = nil
			_, err = s.asked(t, "NodeExpandVolume", &spec.NodeExpandVolumeRequest{VolumeId: id, VolumePath: target, StagingTargetPath: staging, VolumeCapability: vc})
		case 6:
			named = nil
			_, err = s.asked(t, "NodeGetVolumeHealth", &spec.NodeGetVolumeHealthRequest{VolumeId: id, VolumePublishPath: target, StagingTargetPath: staging})
		}
		after := s.tree(t)
		if err != nil {
			named = nil
		}
		for _, p := range named { // where it really is
			if dir, err := filepath.EvalSymlinks(filepath.Dir(p)); err == nil {
				named = append(named, filepath.Join(dir, filepath.Base(p)))
			}
		}
		for _, diff := range [][2]map[string]string{{before, after}, {after, before}} {
			for where, what := range diff[0] {
				if diff[1][where] != what && !allowed(named, where, what) {
					t.Errorf("call %d of %q at %q, staged %q: %v, and %s was or is %q, not %q", call%7, id, target, staging, err, where, what, diff[1][where])
				}
			}
		}
		if points, lerr := s.c.machine.List(); lerr != nil || points[0].Target != s.foreign {
			t.Errorf("what others have mounted is not there: %v, %v", points, lerr)
		}
	})
}

// allowed reports whether a change of what is there is what a call that succeeded may do at the paths that it named: an empty directory or file, a mount.
func allowed(named []string, where, what string) bool {
	for _, p := range named {
		empty := strings.HasPrefix(what, "d") || strings.HasSuffix(what, " ") // a directory is empty if nothing below it has changed
		if where == p && empty || strings.HasPrefix(where, "mount ") && strings.Contains(what, "{Target:"+p+" ") {
			return true
		}
	}
	return false
}

// asked passes a request through all that stands before the service, and holds the code of the answer to the specification.
func (s *sandbox) asked(t *testing.T, method string, req proto.Message) (any, error) {
	t.Helper()
	for _, desc := range spec.Node_ServiceDesc.Methods {
		if desc.MethodName != method {
			continue
		}
		resp, err := desc.Handler(s.Driver, t.Context(), func(into any) error { proto.Merge(into.(proto.Message), req); return nil }, s.intercept)
		if code := status.Code(err); err != nil && !slices.Contains(allowedCodes, code) {
			t.Errorf("%s: %v", method, err)
		}
		return resp, err
	}
	t.Fatalf("no method %s", method)
	return nil, nil
}
