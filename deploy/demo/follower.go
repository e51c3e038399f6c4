package main

import (
	"context"
	_ "embed"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

//go:embed follow.py
var followPy []byte

// follower is a loop device on a volume that moves: nbdkit with a plugin of ours follows the volume over NBD, nbdfuse makes a
// file of that, and the kernel a device.
type follower struct {
	dir  string
	undo *lab.Undo

	dev        string
	kit, files *lab.Process
}

func newFollower(work string, u *lab.Undo) *follower {
	return &follower{dir: filepath.Join(work, "follower"), undo: u}
}

// follow says where the volume is now.
func (f *follower) follow(uri string) error {
	where := filepath.Join(f.dir, "uri")
	if err := os.WriteFile(where+".new", []byte(uri), 0o600); err != nil {
		return err
	}
	return os.Rename(where+".new", where)
}

// open returns the device of the volume that is at uri now.
func (f *follower) open(ctx context.Context, uri string) (string, error) {
	if err := os.MkdirAll(filepath.Join(f.dir, "mnt"), 0o700); err != nil {
		return "", err
	}
	if err := f.follow(uri); err != nil {
		return "", err
	}
	script, sock, file := filepath.Join(f.dir, "follow.py"), filepath.Join(f.dir, "sock"), filepath.Join(f.dir, "mnt", "volume")
	if err := os.WriteFile(script, followPy, 0o600); err != nil {
		return "", err
	}
	var err error
	if f.kit, err = lab.StartProcess("nbdkit", filepath.Join(f.dir, "nbdkit.log"), nil,
		"nbdkit", "--foreground", "--unix", sock, "python", script, "where="+filepath.Join(f.dir, "uri")); err != nil {
		return "", err
	}
	f.undo.Add("nbdkit", f.kit.Kill)
	if err := lab.Until(ctx, "nbdkit answers", 20*time.Second, 50*time.Millisecond, func() (bool, error) {
		if err := f.kit.Died(); err != nil {
			return false, lab.Final(err)
		}
		_, err := lab.Run(ctx, "nbdinfo", "--size", "nbd+unix:///?socket="+sock)
		return err == nil, err
	}); err != nil {
		return "", err
	}
	if f.files, err = lab.StartProcess("nbdfuse", filepath.Join(f.dir, "nbdfuse.log"), nil, "nbdfuse", file, "nbd+unix:///?socket="+sock); err != nil {
		return "", err
	}
	f.undo.Add("nbdfuse", f.files.Kill)
	if err := lab.Until(ctx, "nbdfuse shows the volume", 20*time.Second, 50*time.Millisecond, func() (bool, error) {
		if err := f.files.Died(); err != nil {
			return false, lab.Final(err)
		}
		st, err := os.Stat(file)
		return err == nil && st.Size() > 0, err
	}); err != nil {
		return "", err
	}
	out, err := lab.Run(ctx, "losetup", "--find", "--show", "--sector-size", "4096", file) // what the volume takes
	f.dev = strings.TrimSpace(out)
	return f.dev, err
}

// close takes the device away; nobody has it open.
func (f *follower) close(ctx context.Context) error {
	if _, err := lab.Run(ctx, "losetup", "-d", f.dev); err != nil {
		return err
	}
	if _, err := lab.Run(ctx, "fusermount3", "-u", filepath.Join(f.dir, "mnt")); err != nil {
		return err
	}
	<-f.files.Done()
	return f.kit.Stop(syscall.SIGTERM, 20*time.Second)
}
