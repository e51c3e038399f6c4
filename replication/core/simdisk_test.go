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
	n.disk.hung = false
	for _, f := range n.disk.stuck {
		n.w.once(n, f)
	}
	n.disk.stuck = nil
}

// do carries an operation of n's replica out and returns what it read.
func (d *simDisk) do(n *simNode, io *LocalIO) ([]byte, error) {
	w := n.w
	each := func(f func(s, off int64)) {
		for _, s := range simSectors {
			if off := s*sector - io.Off; off >= 0 && off < io.Len {
				f(s, off)
			}
		}
	}
	modifies := false
	if d.closed {
		return nil, block.ErrClosed
	}
	switch io.Kind {
	case replication.MsgFlush:
		if d.failFlush {
			return nil, block.ErrIO
		}
		maps.Copy(d.stable, d.data)
		return nil, nil
	case replication.MsgRead:
		if d.failRead {
			return nil, block.ErrIO
		}
		p := make([]byte, io.Len)
		each(func(s, off int64) { binary.LittleEndian.PutUint64(p[off:], d.onDisk(s)) })
		if io.Flags&replication.FlagAsIs != 0 {
			return p, nil
		}
		return p, d.verify(w, io)
	case replication.MsgExamine:
		return d.examine(io), nil
	case replication.MsgHashReq:
		if d.failRead {
			return nil, block.ErrIO
		}
		if n.rep.Meta().State == replication.MemberSyncing {
			return d.hash(io.Off, io.Len), nil // as it is: what is damaged differs, and is copied
		}
		return d.hash(io.Off, io.Len), d.verify(w, io)
	default:
		modifies = true
	}
	switch {
	case modifies && d.full:
		return nil, block.ErrNoSpace
	case modifies && d.failWrite && w.rng.IntN(2) == 0:
		return nil, block.ErrIO // and nothing was written
	}
	each(func(s, off int64) {
		d.data[s] = 0
		if io.Data != nil {
			d.data[s] = binary.LittleEndian.Uint64(io.Data[off:])
		}
		d.wrote(s)
		if d.astray {
			d.stray(w, n, s)
		}
		if io.Flags&replication.FlagFUA != 0 {
			d.stable[s] = d.data[s]
		}
	})
	if d.failWrite {
		return nil, block.ErrIO // but it was written
	}
	return nil, nil
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
		var do func()
		do = func() {
			switch {
			case !alive():
			case n.disk.hung:
				n.disk.stuck = append(n.disk.stuck, do)
			default:
				n.flight = slices.DeleteFunc(n.flight, func(o *LocalIO) bool { return o == io })
				data, err := n.disk.do(n, io)
				rep.IODone(io, data, nil, err)
				n.drainRep()
			}
		}
		w.once(n, do)
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
				n.disk.store(w, n, p, true)
				rep.PersistDone(nil)
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
