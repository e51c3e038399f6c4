package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// eviction measures how long the clients wait, at most, when the other replicas go: their process is killed, which resets connections,
// or stopped, which is silence. It ends with both replicas of all volumes in sync.
func (c *cluster) eviction(ctx context.Context, silence bool) (seconds float64, err error) {
	node := c.Node(c.away)
	began := now()
	if silence {
		err = node.Signal(syscall.SIGSTOP)
	} else {
		err = node.Kill()
	}
	if err != nil {
		return 0, err
	}
	if err := c.inSync(ctx, 1); err != nil {
		return 0, err
	}
	if seconds, err = c.longest(ctx, began, now()); err != nil {
		return 0, err
	}
	if silence {
		err = node.Signal(syscall.SIGCONT)
	} else {
		err = c.StartNode(node)
	}
	if err != nil {
		return 0, err
	}
	return seconds, c.inSync(ctx, 2)
}

// split is an eviction in every volume of the group: none goes on before the others can. It ends with the group linked.
func (c *cluster) split(ctx context.Context) (seconds float64, err error) {
	if seconds, err = c.eviction(ctx, false); err != nil {
		return 0, err
	}
	return seconds, lab.Until(ctx, "the group is linked", limit, 50*time.Millisecond, func() (bool, error) {
		out, err := c.Ctl(ctx, c.Node(c.home), "--timeout", "5s", "group", "inspect", groupName, "-o", "json")
		return err == nil && strings.Contains(out, "GROUP_STATE_LINKED"), err
	})
}

// cut cuts the group, asked for at the site where it is not attached, and returns for how long the command says that its writes were held: from
// when the first volume was asked until the last one was let go.
func (c *cluster) cut(ctx context.Context) (seconds float64, err error) {
	began := now()
	out, err := c.Ctl(ctx, c.Node(c.away), "--timeout", "1m", "-o", "json", "group", "cut", groupName, "--reason", "measured")
	if err != nil {
		return 0, err
	}
	var cut struct {
		Hold      int64      `json:"hold_us,string"`
		Positions []struct{} `json:"positions"`
	}
	if err := json.Unmarshal([]byte(out), &cut); err != nil || len(cut.Positions) != len(c.volumes) {
		return 0, fmt.Errorf("group cut printed %.300q: %w", out, err)
	}
	_, err = c.longest(ctx, began, now()) // all go on
	return (time.Duration(cut.Hold) * time.Microsecond).Seconds(), err
}

// failover measures from the SIGKILL of every process of the site where the volume is attached to the first write that is
// answered at the other one, which takes over by itself. It ends with the dead site back in service and in sync.
func (c *cluster) failover(ctx context.Context) (seconds float64, err error) {
	dead := siteOf[c.home]
	began := now()
	if err := c.Kill(dead); err != nil {
		return 0, err
	}
	c.home, c.away = c.away, c.home
	if err := lab.Until(ctx, "the volume is attached at the other site", limit, 10*time.Millisecond, func() (bool, error) {
		v, err := c.inspect(ctx, c.home, volumeName)
		if err != nil || v.Volume.Attachment.Node != c.home || v.Volume.Attachment.Path == "" {
			return false, err
		}
		return true, c.clients[0].moveTo(v.Volume.Attachment.Path)
	}); err != nil {
		return 0, err
	}
	resumed, err := c.clients[0].resumedAfter(ctx, began)
	if err != nil {
		return 0, err
	}
	if err := c.Start(dead); err != nil {
		return 0, err
	}
	if _, err := c.Ctl(ctx, c.Node(c.home), "--timeout", "2m", "cluster", "domains", "activate", "--name", dead, "--reason", "it is back", "--wait"); err != nil {
		return 0, err
	}
	return resumed.since(began), c.inSync(ctx, 2)
}

// switchover moves the volume to the other site by plan, and returns for how long it says that requests were held. The client follows
// when it is told where to: what it waits for beyond that is this program's.
func (c *cluster) switchover(ctx context.Context) (seconds float64, err error) {
	began := now()
	out, err := c.Ctl(ctx, c.Node(c.away), "--timeout", "1m", "-o", "json", "cluster", "domains", "switchover", "--to", siteOf[c.away], "--volume", volumeName, "--reason", "measured")
	if err != nil {
		return 0, err
	}
	var moved struct {
		Moves []struct {
			Done bool   `json:"done"`
			Hold int64  `json:"hold_us,string"`
			Path string `json:"path"`
		} `json:"moves"`
	}
	if err := json.Unmarshal([]byte(out), &moved); err != nil || len(moved.Moves) != 1 || !moved.Moves[0].Done {
		return 0, fmt.Errorf("switchover printed %.300q: %w", out, err)
	}
	c.home, c.away = c.away, c.home
	if err := c.clients[0].moveTo(moved.Moves[0].Path); err != nil {
		return 0, err
	}
	if _, err := c.clients[0].resumedAfter(ctx, began); err != nil {
		return 0, err
	}
	return (time.Duration(moved.Moves[0].Hold) * time.Microsecond).Seconds(), c.inSync(ctx, 2)
}

// series is one kind of event, measured again and again.
type series struct {
	Event   string    `json:"event"`
	RTT     float64   `json:"rtt_ms"`
	Seconds []float64 `json:"seconds"`
	Errors  int       `json:"errors"` // requests that the client was answered with an error
	Lost    int       `json:"lost"`   // blocks that were answered and are not there
	Answers int       `json:"answers"`
}

// job is the work of one cluster: an event, so many times.
type job struct {
	event   string
	rtt     time.Duration
	times   int
	volumes int
	config  func(map[string]any)
	once    func(context.Context, *cluster) (float64, error)
}

// run carries a job out in a cluster of its own, in dir.
func (j job) run(ctx context.Context, bin, dir string, progress func(string, ...any)) (s series, err error) {
	s = series{Event: j.event, RTT: j.rtt.Seconds() * 1e3}
	var u lab.Undo
	defer func() {
		if undone := u.Run(); err == nil {
			err = undone
		}
	}()
	c, err := found(ctx, bin, dir, j.rtt, j.volumes, j.config, &u)
	if err != nil {
		return s, err
	}
	for i := range j.times {
		seconds, err := j.once(ctx, c)
		if err != nil {
			return s, fmt.Errorf("%s, round trip %v, the %d. time: %w", j.event, j.rtt, i+1, err)
		}
		s.Seconds = append(s.Seconds, seconds)
		progress("%-28s round trip %-5v %4d of %d: %.3f s", j.event, j.rtt, i+1, j.times, seconds)
	}
	for _, cl := range c.clients {
		if err := cl.poll(); err != nil {
			return s, err
		}
		s.Errors, s.Lost, s.Answers = s.Errors+cl.errors, s.Lost+cl.lost, s.Answers+cl.answers
	}
	return s, c.close(ctx)
}

// runAll carries jobs out, so many at once. The first error ends all.
func runAll(ctx context.Context, jobs []job, atOnce int, bin, work string, progress func(string, ...any)) ([]series, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	all := make([]series, len(jobs))
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i, j := range jobs {
		wg.Go(func() {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			defer func() { <-slots }()
			var err error
			if all[i], err = j.run(ctx, bin, filepath.Join(work, fmt.Sprint(i)), progress); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return all, context.Cause(ctx)
}
