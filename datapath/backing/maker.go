package backing

import (
	"path/filepath"
	"sync"
)

// maxMakers bounds how many chunks of a replica are being made at once, each by
// a goroutine that waits for the disk.
const maxMakers = 8

// maker makes chunk files on their first write.
type maker struct {
	sync.Mutex
	waiting map[int64]*op // ops that wait for a chunk, linked by next
	queue   []int64
	running int
}

// awaitChunk makes o wait until chunk n has been made, and has it made. It
// returns true if it has been by now: o.chunk is set then.
func (r *Replica) awaitChunk(n int64, o *op) bool {
	m := &r.maker
	m.Lock()
	defer m.Unlock()
	if o.chunk = r.chunk(n); o.chunk != nil {
		return true
	}
	first, queued := m.waiting[n]
	o.next = first
	m.waiting[n] = o
	if queued {
		return false
	}
	m.queue = append(m.queue, n)
	if m.running < maxMakers {
		m.running++
		go r.makeChunks()
	}
	return false
}

// makeChunks makes the chunks in the queue. The requests that wait for them keep
// the replica open.
func (r *Replica) makeChunks() {
	m := &r.maker
	m.Lock()
	for len(m.queue) > 0 {
		n := m.queue[0]
		m.queue = m.queue[1:]
		m.Unlock()
		err := r.Err()
		if err == nil {
			err = r.makeOne(n)
		}
		m.Lock()
		o := m.waiting[n]
		delete(m.waiting, n)
		m.Unlock()
		for o != nil {
			next := o.next
			if err != nil {
				o.owner.opDone(o, err)
			} else {
				o.chunk = r.chunk(n)
				o.fd = o.chunk.fd
				r.pool.engine.submit([]*op{o})
			}
			o = next
		}
		m.Lock()
	}
	m.running--
	m.Unlock()
}

func (r *Replica) makeOne(n int64) error {
	f, err := makeChunk(filepath.Join(r.dir, headDir), r.k, n, r.chunkSize, r.epoch.Load(), r.thick)
	if err != nil {
		return err
	}
	if err := r.chunkMap.made(n); err != nil {
		f.Close()
		return err
	}
	r.addChunk(n, f)
	return nil
}
