package core

import (
	"bytes"

	"github.com/tandem-storage/tandem/replication"
)

// compare copies what differs, in pieces of blocks that follow each other.
func (c *Coordinator) compare(j *copyJob) {
	var p copyPiece
	differ, blocks := 0, 0
	for off := int64(0); off < j.io.Len; off += replication.ResyncBlock {
		k := int(off/replication.ResyncBlock) * replication.HashLen
		h := j.hashes[j.src][k : k+replication.HashLen]
		b := copyPiece{off: j.io.Off + off, n: min(replication.ResyncBlock, j.io.Len-off), zero: bytes.Equal(h, zeroHash)}
		for i := range c.m {
			if j.dst.has(i) && !bytes.Equal(h, j.hashes[i][k:k+replication.HashLen]) {
				b.dst |= bit(i)
			}
		}
		blocks++
		if b.dst != 0 {
			differ++
		}
		if p.dst == b.dst && p.zero == b.zero && p.n < copyMost {
			p.n += b.n
			continue
		}
		c.copyPiece(j, p)
		p = b
	}
	c.copyPiece(j, p)
	if !j.reconcile && c.join != nil && j.dst.has(c.join.q) {
		c.join.direct = 0
		if 2*differ > blocks {
			c.join.direct = directSpans
		}
	}
}

// copyPiece is a part of a span in which the same members differ from the source.
type copyPiece struct {
	off, n int64
	dst    mask
	zero   bool // the source has zeroes
}

// copyMost is the most that is read and sent at once, in bytes: the next piece is read while one is on its way.
const copyMost = 4 * replication.ResyncBlock

// copyPiece brings p to those that differ: zeroes at once, data when they have been read.
func (c *Coordinator) copyPiece(j *copyJob, p copyPiece) {
	switch {
	case p.dst == 0:
	case p.zero:
		for i := range c.m {
			if p.dst.has(i) {
				c.request(copyRequest{job: j, to: i, kind: askWrite, off: p.off, n: p.n},
					replication.Message{Type: replication.MsgResyncWrite, Flags: j.flags(), Offset: p.off, Length: p.n})
			}
		}
	default:
		c.request(copyRequest{job: j, to: j.src, kind: askRead, off: p.off, n: p.n, dst: p.dst},
			replication.Message{Type: replication.MsgRead, Offset: p.off, Length: p.n})
	}
}
