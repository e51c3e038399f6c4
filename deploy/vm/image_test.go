package vm

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

// TestArchive reads an archive back as the kernel does: a head of fixed size, the name, the data, all aligned to four bytes.
func TestArchive(t *testing.T) {
	want := map[string]string{"init": "first", "bin/a": "", "bin/b": "four", "lib/x/y.so": "12345", "modules": "\n"}
	var out bytes.Buffer
	a := archive{w: &out}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		a.file("/"+name, []byte(want[name]))
	}
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	data := out.Bytes()
	var names []string
	for off := 0; ; {
		head := string(data[off : off+110])
		if head[:6] != "070701" {
			t.Fatalf("at %d: %q", off, head)
		}
		field := func(i int) int {
			n, err := strconv.ParseInt(head[6+8*i:14+8*i], 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		mode, size, nameSize := field(1), field(6), field(11)
		name := string(data[off+110 : off+110+nameSize-1])
		off = (off + 110 + nameSize + 3) &^ 3
		if name == "TRAILER!!!" {
			if off != len(data) {
				t.Errorf("%d bytes behind the end", len(data)-off)
			}
			break
		}
		names = append(names, name)
		content := string(data[off : off+size])
		off = (off + size + 3) &^ 3
		if is := fmt.Sprintf("%o", mode); is != "40755" && (is != "100755" || content != want[name]) {
			t.Errorf("%s has mode %s and holds %q", name, is, content)
		}
	}
	// A directory comes before what is in it, once.
	if got, want := fmt.Sprint(names), "[bin bin/a bin/b init lib lib/x lib/x/y.so modules]"; got != want {
		t.Errorf("the archive has %s, want %s", got, want)
	}
}

// TestFindModules wants modules by name, however their files are written, and those that the kernel has built in.
func TestFindModules(t *testing.T) {
	dir := t.TempDir()
	lib := filepath.Join(dir, "lib", "modules", "6.12")
	if err := os.MkdirAll(lib, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{"dm-mod.ko": "", "modules.builtin": "kernel/drivers/virtio/virtio_pci.ko\nkernel/fs/fuse/fuse.ko\n", "notes": ""} {
		if err := os.WriteFile(filepath.Join(lib, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files, builtin, err := findModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 1 || files["dm_mod"] != filepath.Join(lib, "dm-mod.ko") {
		t.Errorf("files: %v", files)
	}
	if len(builtin) != 2 || !builtin["virtio_pci"] || !builtin["fuse"] {
		t.Errorf("built in: %v", builtin)
	}
}
