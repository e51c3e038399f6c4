package blocktest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
)

// poison fills memory that a device has no business with any more.
const poison = 0xdb

// rig drives a device for a check and watches what every request promises:
// completed once, not changed, its memory left alone before and after.
type rig struct {
	dev  block.Device
	info block.Info
	size int64
	rng  *rand.Rand

	mu     sync.Mutex
	err    error    // first violation seen
	reads  [][]byte // poisoned memory of completed reads, to be poisoned still at the end
	flying map[*call]struct{}
}

func newRig(d block.Device, size int64, seed uint64) *rig {
	return &rig{
		dev: d, info: d.Info(), size: size,
		rng:    rand.New(rand.NewPCG(seed, 1)),
		flying: make(map[*call]struct{}),
	}
}

func (r *rig) has(c block.Caps) bool { return r.info.Caps&c == c }

// call is one submitted request.
type call struct {
	rig   *rig
	req   block.Request
	as    block.Request // as it was submitted
	sent  []byte        // what a write's Data held
	got   []byte        // what a read returned
	err   error
	calls int
	done  chan struct{}
}

// prepare makes calls of the requests.
func (r *rig) prepare(reqs []block.Request) ([]*call, []*block.Request) {
	calls := make([]*call, len(reqs))
	batch := make([]*block.Request, len(reqs))
	for i, q := range reqs {
		c := &call{rig: r, req: q, done: make(chan struct{})}
		c.req.By = c
		c.as = c.req
		if q.Op == block.OpWrite {
			c.sent = bytes.Clone(q.Data)
		}
		calls[i], batch[i] = c, &c.req
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range calls {
		r.flying[c] = struct{}{}
	}
	return calls, batch
}

// start submits the requests as one batch.
func (r *rig) start(reqs ...block.Request) []*call {
	calls, batch := r.prepare(reqs)
	r.dev.Submit(batch)
	// The slice is the submitter's again: a device that kept it finds a decoy.
	for i := range batch {
		batch[i] = &block.Request{Op: block.OpFlush, By: block.CompleterFunc(func(*block.Request, error) {
			r.violated("the batch slice was used after Submit returned")
		})}
	}
	return calls
}

// Complete implements block.Completer.
func (c *call) Complete(q *block.Request, err error) {
	r := c.rig
	r.mu.Lock()
	c.calls++
	calls := c.calls
	delete(r.flying, c)
	r.mu.Unlock()
	if calls > 1 {
		r.violated("%v completed %d times", c, calls)
		return
	}
	now, as := &c.req, &c.as
	switch {
	case q != now:
		r.violated("%v completed with another request's address", c)
	case now.Op != as.Op || now.Flags != as.Flags || now.Off != as.Off || now.Len != as.Len ||
		len(now.Data) != len(as.Data) || now.Buf != as.Buf || now.By != as.By ||
		len(now.Data) > 0 && &now.Data[0] != &as.Data[0]:
		r.violated("%v was changed by the device", c)
	case as.Op == block.OpWrite && !bytes.Equal(as.Data, c.sent):
		r.violated("%v: its Data was changed by the device", c)
	}
	if as.Op == block.OpRead {
		c.got = bytes.Clone(as.Data)
	}
	c.spoil()
	c.err = err
	close(c.done)
}

// spoil makes the memory of a completed request useless to a device that still
// looks at it, or notes it to find one that still writes to it.
func (c *call) spoil() {
	r := c.rig
	if b := c.as.Buf; b != nil {
		n := len(b.Bytes())
		b.Release()
		// If nobody retained it, the pool gives it out again, and it may be
		// overwritten by anybody.
		b = block.NewBuffer(n)
		fill(b.Bytes(), poison)
		b.Release()
		return
	}
	fill(c.as.Data, poison)
	if c.as.Op == block.OpRead && len(c.as.Data) > 0 {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.reads) < 1024 {
			r.reads = append(r.reads, c.as.Data)
		}
	}
}

func (c *call) String() string {
	return fmt.Sprintf("%v of %d bytes at %d", c.as.Op, c.as.Len, c.as.Off)
}

// wait returns when the calls are complete; their errors are in them.
func (r *rig) wait(calls ...*call) error {
	limit := time.NewTimer(completionLimit)
	defer limit.Stop()
	for _, c := range calls {
		select {
		case <-c.done:
		case <-limit.C:
			return fmt.Errorf("%v was not completed within %v", c, completionLimit)
		}
	}
	return nil
}

// all submits the requests as one batch; the first error of any is returned.
func (r *rig) all(reqs ...block.Request) error {
	calls := r.start(reqs...)
	if err := r.wait(calls...); err != nil {
		return err
	}
	for _, c := range calls {
		if c.err != nil {
			return fmt.Errorf("%v failed: %w", c, c.err)
		}
	}
	return nil
}

// wants submits one request that has to end with the error.
func (r *rig) wants(q block.Request, want error) error {
	calls := r.start(q)
	if err := r.wait(calls...); err != nil {
		return err
	}
	if c := calls[0]; !errors.Is(c.err, want) || want == nil && c.err != nil {
		return fmt.Errorf("%v (flags %#x, %d bytes of data) ended with %s", c, q.Flags, len(q.Data), fmt.Sprint(c.err, ", want ", want))
	}
	return nil
}

// write stores p in pieces, each in memory of its own.
func (r *rig) write(off int64, p []byte, f block.Flags) error {
	var reqs []block.Request
	for len(p) > 0 {
		n := min(len(p), block.MaxIO)
		reqs = append(reqs, writeOf(off, bytes.Clone(p[:n]), f))
		p, off = p[n:], off+int64(n)
	}
	return r.all(reqs...)
}

// expect reads and compares.
func (r *rig) expect(off int64, want []byte) error {
	for len(want) > 0 {
		n := min(len(want), block.MaxIO)
		calls := r.start(readOf(off, make([]byte, n)))
		if err := r.wait(calls...); err != nil {
			return err
		}
		c := calls[0]
		if c.err != nil {
			return fmt.Errorf("%v failed: %w", c, c.err)
		}
		if err := differ(off, c.got, want[:n]); err != nil {
			return err
		}
		want, off = want[n:], off+int64(n)
	}
	return nil
}

func differ(off int64, got, want []byte) error {
	for i := range want {
		if got[i] != want[i] {
			end := min(i+8, len(want))
			return fmt.Errorf("at offset %d: read % x, want % x", off+int64(i), got[i:end], want[i:end])
		}
	}
	return nil
}

func (r *rig) violated(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

func (r *rig) violation() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// close closes the device, within the limit.
func (r *rig) close() error {
	done := make(chan error, 1)
	go func() { done <- r.dev.Close() }()
	limit := time.NewTimer(completionLimit)
	defer limit.Stop()
	select {
	case err := <-done:
		return err
	case <-limit.C:
		return fmt.Errorf("Close did not return within %v", completionLimit)
	}
}

// finish closes the device and tells the first violation.
func (r *rig) finish() error {
	if err := r.close(); err != nil {
		return fmt.Errorf("Close: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	for c := range r.flying {
		return fmt.Errorf("%v was not completed when Close returned", c)
	}
	for _, p := range r.reads {
		if bytes.Count(p, []byte{poison}) != len(p) {
			return errors.New("the memory of a read was written after its completion")
		}
	}
	return nil
}

func readOf(off int64, p []byte) block.Request {
	return block.Request{Op: block.OpRead, Off: off, Len: int64(len(p)), Data: p}
}

func writeOf(off int64, p []byte, f block.Flags) block.Request {
	return block.Request{Op: block.OpWrite, Flags: f, Off: off, Len: int64(len(p)), Data: p}
}

func fill(p []byte, b byte) {
	for i := range p {
		p[i] = b
	}
}

// pattern is n bytes that depend on the key and on where they are, none of them
// in a run of zeroes.
func pattern(key uint64, off int64, n int) []byte {
	p := make([]byte, (n+7)&^7)
	for i := 0; i < len(p); i += 8 {
		x := key*0x9e3779b97f4a7c15 + uint64(off+int64(i))
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(p[i:], x^x>>31|1)
	}
	return p[:n]
}
