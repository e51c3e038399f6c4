package core

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"sync"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// unhang lets hanging operations end.
func (n *simNode) unhang() {
	n.disk.hung, n.disk.hangNext = false, false
	for _, f := range n.disk.stuck {
		n.w.once(n, f)
	}
	n.disk.stuck = nil
}

// eachSector calls f for the sectors in use that an operation has, with their offset in it.
func eachSector(io *LocalIO, f func(s, off int64)) {
	for _, s := range simSectors {
		if off := s*sector - io.Off; off >= 0 && off < io.Len {
			f(s, off)
		}
	}
}

// modifies reports whether an operation of that kind changes data.
func modifies(k replication.MessageType) bool {
	return k != replication.MsgRead && k != replication.MsgHashReq && k != replication.MsgExamine && k != replication.MsgFlush && k != replication.MsgSnapCut
}

// do carries an operation of n's replica out and returns what it read.
func (d *simDisk) do(n *simNode, io *LocalIO) ([]byte, error) {
	w := n.w
	if d.closed {
		return nil, block.ErrClosed
	}
	switch io.Kind {
	case replication.MsgFlush:
		if d.failFlush || d.dropNext {
			d.drop(w)
			return nil, block.ErrIO
		}
		maps.Copy(d.stable, d.data)
		return nil, nil
	case replication.MsgSnapCut:
		return nil, d.cut(n, io)
	case replication.MsgRead:
		if d.failRead || d.failNext {
			d.failNext = false
			return nil, block.ErrIO
		}
		p := make([]byte, io.Len)
		eachSector(io, func(s, off int64) { binary.LittleEndian.PutUint64(p[off:], d.onDisk(s)) })
		if io.Flags&replication.FlagAsIs != 0 {
			return p, nil
		}
		return p, d.verify(w, io)
	case replication.MsgExamine:
		return d.examine(io), nil
	case replication.MsgHashReq:
		if d.failNext && !d.failRead {
			w.failedOnce[io.Off]++
		}
		if d.failRead || d.failNext {
			d.failNext = false
			return nil, block.ErrIO
		}
		if n.rep.Meta().State == replication.MemberSyncing {
			return d.hash(io.Off, io.Len), nil // as it is: what is damaged differs, and is copied
		}
		return d.hash(io.Off, io.Len), d.verify(w, io)
	default:
	}
	switch {
	case d.full:
		return nil, block.ErrNoSpace
	case d.failWrite && w.rng.IntN(2) == 0:
		return nil, block.ErrIO // and nothing was written
	}
	eachSector(io, func(s, off int64) { d.put(n, io, s, off) })
	if d.failWrite {
		return nil, block.ErrIO // but it was written
	}
	return nil, nil
}

// fails reports whether writes or flushes fail.
func (d *simDisk) fails() bool { return d.failWrite || d.failFlush || d.dropNext }

// drop is a flush that fails and leaves nothing behind to flush again: the next one succeeds.
func (d *simDisk) drop(w *simWorld) {
	if !d.dropNext {
		return
	}
	d.dropNext = false
	for _, s := range simSectors {
		if w.rng.IntN(2) == 0 {
			d.data[s] = d.stable[s]
		}
		d.stable[s] = d.data[s]
	}
}

// put writes one sector of a modification, the one at off of it.
func (d *simDisk) put(n *simNode, io *LocalIO, s, off int64) {
	d.data[s] = 0
	if io.Data != nil {
		d.data[s] = binary.LittleEndian.Uint64(io.Data[off:])
	}
	if io.Flags&replication.FlagFUA != 0 {
		d.stable[s] = d.data[s]
	}
	d.wrote(s)
	if d.astray {
		d.stray(n.w, n, s)
	}
}

// tear is the end of what is in the kernel when the process ends: done or not done, and with the power in part.
func (d *simDisk) tear(n *simNode, power bool) {
	w := n.w
	if w.fifo || d.closed || d.full || d.failWrite {
		return
	}
	for _, io := range n.flight {
		if io.Kind == replication.MsgSnapCut && !d.failFlush && !d.dropNext && d.snapshot(io) == nil && w.rng.IntN(2) == 0 {
			_ = d.cut(n, io) // nobody hears of it
		}
		if !modifies(io.Kind) {
			continue
		}
		done, most, some := w.rng.IntN(2) == 0, 0, 0
		eachSector(io, func(s, off int64) {
			most++
			if power && w.rng.IntN(2) == 0 || !power && done {
				d.put(n, io, s, off)
				some++
			}
		})
		if 0 < some && some < most {
			w.seen["writes torn"]++
		}
	}
}

// tearNow cuts the power while io is in the kernel, if that is what is to come.
func (n *simNode) tearNow(io *LocalIO) {
	sectors := 0
	eachSector(io, func(int64, int64) { sectors++ })
	if !n.disk.tearNext || sectors < 2 || !modifies(io.Kind) {
		return
	}
	n.disk.tearNext = false
	life := n.life
	n.w.after(1, func() {
		if n.up && n.life == life {
			n.crash(true)
		}
	})
}

// simHashes are the hashes of ResyncBlocks by what is in them, for all worlds.
var simHashes sync.Map

// hash returns the hashes of ResyncBlocks.
func (d *simDisk) hash(off, n int64) []byte {
	var h, what []byte
	for end := off + n; off < end; off += replication.ResyncBlock {
		k := min(replication.ResyncBlock, end-off)
		what = binary.LittleEndian.AppendUint64(what[:0], uint64(k))
		for _, s := range simSectors {
			if at := s*sector - off; at >= 0 && at < k && d.onDisk(s) != 0 {
				what = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(what, uint64(at)), d.onDisk(s))
			}
		}
		known, ok := simHashes.Load(string(what))
		if !ok {
			p := make([]byte, k)
			for e := what[8:]; len(e) > 0; e = e[16:] {
				copy(p[binary.LittleEndian.Uint64(e):], e[8:16])
			}
			s := sha256.Sum256(p)
			known, _ = simHashes.LoadOrStore(string(what), s[:replication.HashLen])
		}
		h = append(h, known.([]byte)...)
	}
	return h
}

// drainRep carries out what the replica asks for.
func (n *simNode) drainRep() {
	w, rep, life := n.w, n.rep, n.life
	r := rep.Ready()
	alive := func() bool { return n.up && n.life == life }
	if r.Log != nil {
		n.changeLog(r.Log, alive)
	}
	for _, io := range r.IO {
		w.checkSubmit(n, io)
		n.flight = append(n.flight, io)
		n.tearNow(io)
		var do func()
		do = func() {
			switch {
			case !alive():
			case n.disk.hung || n.disk.hangNext:
				n.disk.hangNext = false
				n.disk.stuck = append(n.disk.stuck, do)
			default:
				n.flight = slices.DeleteFunc(n.flight, func(o *LocalIO) bool { return o == io })
				data, err := n.disk.do(n, io)
				rep.IODone(io, data, nil, err)
				n.drainRep()
			}
		}
		if n.disk.slow > 0 {
			w.after(n.disk.slow, func() { w.once(n, do) })
		} else {
			w.once(n, do)
		}
	}
	for _, s := range r.Send {
		if conn := n.conns[s.Conn]; conn != nil {
			msg := s.Msg
			w.traceMessage("<-", conn.coord, n, &msg)
			w.enqueue(conn.back, simTurn{func() { conn.answer(&msg) }, msg.Type == replication.MsgGrant})
		}
	}
	for _, p := range r.Replies {
		if f := n.ctl[p.ID]; f != nil {
			delete(n.ctl, p.ID)
			f(p.Result)
		}
	}
	for _, id := range r.Close {
		if conn := n.conns[id]; conn != nil {
			delete(n.conns, id)
			conn.closeBack()
		}
	}
	if r.Persist != nil {
		p := r.Persist
		n.disk.persist = p
		w.once(n, func() {
			if alive() {
				rep.PersistDone(n.disk.store(w, n, p, true))
				n.drainRep()
			}
		})
	}
	if r.Wake != 0 {
		n.wake = r.Wake
	}
	if r.Faulted {
		w.seen["replica faulted"]++
		w.checkSolid(true)
	}
	rep.Advance()
}
