package main

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/deploy/lab"
)

//go:embed client.py
var clientPy []byte

// python is Debian's: python3-libnbd is a module of that one.
const python = "/usr/bin/python3"

// instant is a time of CLOCK_MONOTONIC, which processes share.
type instant int64

func now() instant {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // always there
	return instant(ts.Nano())
}

// since is the time from past to t, in seconds.
func (t instant) since(past instant) float64 { return time.Duration(t - past).Seconds() }

// client is a process of client.py, and what it told so far.
type client struct {
	proc  *lab.Process
	where string
	told  *os.File
	rest  []byte // an incomplete line

	resumed []instant
	pauses  []pause
	ticked  instant
	answers int
	errors  int
	lost    int
}

type pause struct{ from, to instant }

// startClient starts a client of a volume in dir. It waits for the first moveTo.
func startClient(dir, volume string, u *lab.Undo) (*client, error) {
	script := filepath.Join(dir, "client.py")
	if err := os.WriteFile(script, clientPy, 0o644); err != nil {
		return nil, err
	}
	c := &client{where: filepath.Join(dir, volume+".uri")}
	log := filepath.Join(dir, "log", "client-"+volume+".log")
	var err error
	if c.proc, err = lab.StartProcess("client", log, nil, python, script, c.where); err != nil {
		return nil, err
	}
	u.Add("client", c.proc.Kill)
	if c.told, err = os.Open(log); err != nil {
		return nil, err
	}
	u.Add("client's log", c.told.Close)
	return c, nil
}

// moveTo says where the client connects the next time.
func (c *client) moveTo(uri string) error {
	if err := os.WriteFile(c.where+".new", []byte(uri), 0o644); err != nil {
		return err
	}
	return os.Rename(c.where+".new", c.where)
}

// poll takes what the client told since the last time.
func (c *client) poll() error {
	if err := c.proc.Died(); err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for {
		n, err := c.told.Read(buf)
		c.rest = append(c.rest, buf[:n]...)
		if n == 0 || err != nil {
			break // the end, so far
		}
	}
	for {
		line, rest, whole := bytes.Cut(c.rest, []byte{'\n'})
		if !whole {
			return nil
		}
		if err := c.line(string(line)); err != nil {
			return err
		}
		c.rest = rest
	}
}

func (c *client) line(line string) error {
	var word string
	var at instant
	var n int64
	if k, _ := fmt.Sscan(line, &word, &at, &n); k < 2 {
		return fmt.Errorf("the client said %q", line)
	}
	switch word {
	case "connected":
	case "resumed":
		c.resumed = append(c.resumed, at)
	case "pause":
		c.pauses = append(c.pauses, pause{at, instant(n)})
	case "tick":
		c.ticked, c.answers = at, int(n)
	case "error":
		c.errors++
	case "lost":
		c.lost += int(n)
	default:
		return fmt.Errorf("the client said %q", line)
	}
	return nil
}

// resumedAfter waits for the first answer on a connection made after t.
func (c *client) resumedAfter(ctx context.Context, t instant) (at instant, err error) {
	err = lab.Until(ctx, "the client goes on", time.Minute, 20*time.Millisecond, func() (bool, error) {
		if err := c.poll(); err != nil {
			return false, lab.Final(err)
		}
		for _, r := range c.resumed {
			if r > t {
				at = r
				return true, nil
			}
		}
		return false, nil
	})
	return at, err
}

// longest waits until the client was answered after until, and returns its longest pause since from, in seconds; 0 if none
// was worth telling.
func (c *client) longest(ctx context.Context, from, until instant) (seconds float64, err error) {
	err = lab.Until(ctx, "the client goes on", time.Minute, 20*time.Millisecond, func() (bool, error) {
		if err := c.poll(); err != nil {
			return false, lab.Final(err)
		}
		return c.ticked > until, nil
	})
	for _, p := range c.pauses {
		if p.to > from {
			seconds = max(seconds, p.to.since(p.from))
		}
	}
	return seconds, err
}

// end ends the client.
func (c *client) end() error { return c.proc.Stop(syscall.SIGTERM, time.Minute) }
