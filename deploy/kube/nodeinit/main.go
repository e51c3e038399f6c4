// Command nodeinit is the first process of a node of package kube: it makes the mounts of the node and runs its programs, each again when
// it ends. The plan is the JSON file that is its only argument.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/deploy/kube/nodeplan"
)

// again is how long a program that ended is left alone.
const again = 500 * time.Millisecond

func main() {
	fmt.Fprintln(os.Stderr, "nodeinit:", run())
	os.Exit(1)
}

// run returns why it cannot go on: a first process has no other end.
func run() error {
	if os.Getpid() != 1 || len(os.Args) != 2 {
		return fmt.Errorf("is the first process of a node, with the file of its plan as its only argument")
	}
	data, err := os.ReadFile(os.Args[1])
	if err != nil {
		return err
	}
	var plan nodeplan.Plan
	if err := json.Unmarshal(data, &plan); err != nil {
		return fmt.Errorf("%s: %w", os.Args[1], err)
	}
	if err := prepare(&plan); err != nil {
		return err
	}
	running := map[int]*nodeplan.Program{}
	for i := range plan.Programs {
		if err := start(running, &plan.Programs[i]); err != nil {
			return err
		}
	}
	for { // whatever ends without a parent is ours, too
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait: %w", err)
		}
		p := running[pid]
		if p == nil {
			continue
		}
		delete(running, pid)
		fmt.Printf("%s %s ended: exit %d, signal %d\n", time.Now().Format(time.TimeOnly), p.Name, status.ExitStatus(), status.Signal())
		time.Sleep(again)
		if err := start(running, p); err != nil {
			return err
		}
	}
}

// prepare gives the node its name and its mounts, which are nobody else's.
func prepare(plan *nodeplan.Plan) error {
	if err := unix.Sethostname([]byte(plan.Name)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := ownRoot(plan.Needs); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	for _, b := range plan.Binds {
		if err := os.MkdirAll(b.At, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(b.From, b.At, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", b.At, err)
		}
	}
	// What a container mounts below a directory that it shares has to be seen by the kubelet, and in other containers.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("shared mounts: %w", err)
	}
	for file, value := range map[string]string{"/proc/sys/net/ipv4/ip_forward": "1", "/proc/sys/net/ipv4/conf/all/route_localnet": "1"} {
		if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// start starts a program with its output appended to its log.
func start(running map[int]*nodeplan.Program, p *nodeplan.Program) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	child, err := os.StartProcess(p.Argv[0], p.Argv, &os.ProcAttr{
		Dir: filepath.Dir(p.Log), Files: []*os.File{null, log, log},
		Env: append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, p.Env...),
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", strings.Join(p.Argv, " "), err)
	}
	running[child.Pid] = p
	return child.Release()
}
