package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// startClientHop starts an NBD server of somebody else's that keeps size in memory, so that a job on it costs the way
// of a client's request to a server and back and little else.
func startClientHop(ctx context.Context, work, size string, u *lab.Undo) (target, error) {
	sock := filepath.Join(work, "hop.sock")
	cmd := exec.CommandContext(ctx, "nbdkit", "--foreground", "--unix", sock, "memory", size)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return target{}, err
	}
	u.Add("nbdkit", func() error {
		_ = cmd.Process.Kill() // it has nothing to lose, and may have ended
		_ = cmd.Wait()
		return nil
	})
	t := target{name: "hop", uri: "nbd+unix:///?socket=" + sock}
	return t, lab.Until(ctx, "nbdkit listens", 10*time.Second, 10*time.Millisecond, func() (bool, error) {
		_, err := os.Stat(sock)
		return err == nil, err
	})
}
