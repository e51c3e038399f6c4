package vm

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// modules are what the guest's kernel needs, unless it has it built in; what they depend on comes by itself. ext4 is built in everywhere.
var modules = []string{"virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "xfs", "fuse", "loop", "dm_mod", "dm_delay", "dm_flakey"}

// tools are programs of Debian's that the guest needs, with their libraries.
var tools = []string{"/usr/sbin/ip", "/usr/sbin/mkfs.xfs", "/usr/sbin/xfs_repair", "/usr/sbin/mkfs.ext4", "/usr/sbin/e2fsck", "/usr/sbin/dmsetup", "/usr/bin/date"}

// WriteImage writes an initramfs: the programs, by the name in the guest and the file here, of which /init is the first to
// run; the tools; and the modules of the kernel whose package was unpacked in the directory kernel, with /modules, the order to load them in.
func WriteImage(ctx context.Context, w io.Writer, kernel string, programs map[string]string) error {
	files := map[string]string{}
	for name, file := range programs {
		files[name] = file
	}
	for _, tool := range tools {
		libraries, err := lab.Libraries(ctx, tool)
		if err != nil {
			return err
		}
		for _, f := range append(libraries, tool) {
			files[f] = f
		}
	}
	order, err := moduleOrder(kernel)
	if err != nil {
		return err
	}
	a := archive{w: w}
	var list strings.Builder
	for _, m := range order {
		name := "/lib/modules/" + filepath.Base(m)
		files[name] = m
		fmt.Fprintln(&list, name)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		data, err := os.ReadFile(files[name])
		if err != nil {
			return err
		}
		a.file(name, data)
	}
	a.file("/modules", []byte(list.String()))
	return a.close()
}

// moduleOrder returns the files of the modules and of all that they depend on, each after what it depends on, without what is built in.
func moduleOrder(kernel string) ([]string, error) {
	files, builtin, err := findModules(kernel)
	if err != nil {
		return nil, err
	}
	var order []string
	var add func(name string) error
	add = func(name string) error {
		file, ok := files[moduleName(name)]
		switch {
		case ok:
		case builtin[moduleName(name)]:
			return nil
		default:
			return fmt.Errorf("vm: no module %s in %s", name, kernel)
		}
		if slices.Contains(order, file) {
			return nil
		}
		needs, err := dependsOn(file)
		if err != nil {
			return err
		}
		for _, n := range needs {
			if err := add(n); err != nil {
				return err
			}
		}
		order = append(order, file)
		return nil
	}
	for _, m := range modules {
		if err := add(m); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleName is the name of the module in a file, the same for both ways to write it.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")
}

// findModules returns the files of a kernel's modules by their names, and the names of those that are built in.
func findModules(kernel string) (files map[string]string, builtin map[string]bool, err error) {
	files, builtin = map[string]string{}, map[string]bool{}
	err = filepath.WalkDir(filepath.Join(kernel, "lib", "modules"), func(p string, _ os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case filepath.Ext(p) == ".ko":
			files[moduleName(p)] = p
		case filepath.Base(p) == "modules.builtin":
			list, err := os.ReadFile(p)
			for line := range strings.FieldsSeq(string(list)) {
				builtin[moduleName(line)] = true
			}
			return err
		}
		return nil
	})
	return files, builtin, err
}

// dependsOn reads the names of the modules whose symbols a module needs.
func dependsOn(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	defer f.Close()
	info := f.Section(".modinfo")
	if info == nil {
		return nil, fmt.Errorf("%s: no .modinfo: not a kernel module", file)
	}
	data, err := info.Data()
	if err != nil {
		return nil, err
	}
	var names []string
	for entry := range bytes.SplitSeq(data, []byte{0}) {
		if list, ok := strings.CutPrefix(string(entry), "depends="); ok && list != "" {
			names = append(names, strings.Split(list, ",")...)
		}
	}
	return names, nil
}

// archive writes a cpio archive of the "newc" kind, as the kernel unpacks it. The first error stays.
type archive struct {
	w    io.Writer
	dirs map[string]bool
	ino  int
	err  error
}

func (a *archive) file(name string, data []byte) {
	a.dir(path.Dir(name))
	a.entry(name, 0o100755, data)
}

// dir makes a directory and those above it.
func (a *archive) dir(name string) {
	if name == "/" || a.dirs[name] {
		return
	}
	if a.dirs == nil {
		a.dirs = map[string]bool{}
	}
	a.dirs[name] = true
	a.dir(path.Dir(name))
	a.entry(name, 0o040755, nil)
}

func (a *archive) entry(name string, mode int, data []byte) {
	if a.err != nil {
		return
	}
	name = strings.TrimPrefix(name, "/")
	a.ino++
	// Fields: ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check.
	head := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	for _, p := range [][]byte{[]byte(head), padding(len(head)), data, padding(len(data))} {
		if _, err := a.w.Write(p); err != nil && a.err == nil {
			a.err = err
		}
	}
}

func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, nil)
	return a.err
}

// padding fills up to a multiple of four.
func padding(n int) []byte { return make([]byte, -n&3) }
