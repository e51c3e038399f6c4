package kube

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// Image is a container image of one layer. The same files make the same bytes.
type Image struct {
	Name       string            // with its tag
	Files      map[string]string // path in the image: file here, which may be a link
	Links      map[string]string // path in the image: what it points to
	Dirs       []string          // besides those of the files
	Entrypoint []string
	Cmd        []string
}

// AddPrograms adds programs of this machine, found in PATH, with the libraries that they need, at the paths that they have here.
func (m *Image) AddPrograms(ctx context.Context, names ...string) error {
	if m.Files == nil {
		m.Files = map[string]string{}
	}
	for _, name := range names {
		out, err := lab.Run(ctx, "sh", "-c", "command -v "+name)
		if err != nil {
			return fmt.Errorf("kube: no program %s for image %s: %w", name, m.Name, err)
		}
		program := strings.TrimSpace(out)
		libraries, err := lab.Libraries(ctx, program)
		if err != nil {
			return err
		}
		for _, f := range append(libraries, program) {
			m.Files[f] = f
		}
	}
	return nil
}

// AddTree adds what is below dir on this machine at path at in the image: files, links as they are, and directories.
func (m *Image) AddTree(dir, at string) error {
	if m.Files == nil {
		m.Files = map[string]string{}
	}
	if m.Links == nil {
		m.Links = map[string]string{}
	}
	err := filepath.WalkDir(dir, func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := path.Join(at, strings.TrimPrefix(file, dir))
		switch {
		case e.IsDir():
			m.Dirs = append(m.Dirs, name)
		case e.Type() == fs.ModeSymlink:
			to, err := os.Readlink(file)
			if err != nil {
				return err
			}
			m.Links[name] = to
		case e.Type().IsRegular():
			m.Files[name] = file
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("kube: image %s: %w", m.Name, err)
	}
	return nil
}

// WriteTo writes the archive that `docker save` writes and `ctr images import` reads.
func (m *Image) WriteTo(w io.Writer) (int64, error) {
	layer, err := m.layer()
	if err != nil {
		return 0, fmt.Errorf("kube: image %s: %w", m.Name, err)
	}
	sum := sha256.Sum256(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{
			"Entrypoint": m.Entrypoint, "Cmd": m.Cmd, "Env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		return 0, err
	}
	sum = sha256.Sum256(config)
	configName := hex.EncodeToString(sum[:]) + ".json"
	manifest, err := json.Marshal([]any{map[string]any{"Config": configName, "RepoTags": []string{m.Name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return 0, err
	}
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	for _, f := range []struct {
		name string
		data []byte
	}{{"manifest.json", manifest}, {configName, config}, {"layer.tar", layer}} {
		if err := addFile(t, f.name, 0o644, f.data); err != nil {
			return 0, err
		}
	}
	if err := t.Close(); err != nil {
		return 0, err
	}
	return b.WriteTo(w)
}

func addFile(t *tar.Writer, name string, mode int64, data []byte) error {
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := t.Write(data)
	return err
}

// layer is the archive of the files, each directory before what is in it.
func (m *Image) layer() ([]byte, error) {
	dirs := map[string]bool{}
	var need func(dir string)
	need = func(dir string) {
		if dir = strings.Trim(path.Clean("/"+dir), "/"); dir != "" && !dirs[dir] {
			need(path.Dir(dir))
			dirs[dir] = true
		}
	}
	for _, d := range m.Dirs {
		need(d)
	}
	for _, names := range []map[string]string{m.Files, m.Links} {
		for name := range names {
			need(path.Dir(name))
		}
	}
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	for _, d := range slices.Sorted(maps.Keys(dirs)) {
		mode := int64(0o755)
		if d == "tmp" {
			mode = 0o1777
		}
		if err := t.WriteHeader(&tar.Header{Name: d + "/", Mode: mode, Typeflag: tar.TypeDir}); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.Files)) {
		file, err := filepath.EvalSymlinks(m.Files[name])
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(file)
		if err != nil {
			return nil, err
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if err := addFile(t, strings.TrimPrefix(name, "/"), int64(info.Mode().Perm()), data); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.Links)) {
		h := &tar.Header{Name: strings.TrimPrefix(name, "/"), Linkname: m.Links[name], Mode: 0o777, Typeflag: tar.TypeSymlink}
		if err := t.WriteHeader(h); err != nil {
			return nil, err
		}
	}
	if err := t.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
