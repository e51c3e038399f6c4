package volume

import (
	"crypto/sha256"
	"errors"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// examine replaces the data read by what is found in each of their sectors. Unless all were read well
// each is read anew by itself: which of them are not is what is asked.
func (o *hostIO) examine(well bool) {
	n := len(o.data) / block.SectorSize
	out := block.NewBuffer(n * replication.FindingLen)
	var err error
	for i := 0; i < n && err == nil; i++ {
		p := o.data[i*block.SectorSize:][:block.SectorSize]
		f := replication.FindingGood
		if !well {
			f, err = o.h.find(p, o.io.Off+int64(i)*block.SectorSize)
		}
		to := out.Bytes()[i*replication.FindingLen:][:replication.FindingLen]
		clear(to)
		to[0] = byte(f)
		if f != replication.FindingUnreadable {
			s := sha256.Sum256(p)
			copy(to[1:], s[:])
		}
	}
	o.buf.Release()
	o.buf, o.data = out, out.Bytes()
	if err != nil {
		out.Release()
		o.buf, o.data = nil, nil
	}
	o.h.post(hostInput{kind: hostIODone, io: o, err: err})
}

// find reads a sector into p as far as it can be read. The error is one of the storage as a whole.
func (h *host) find(p []byte, off int64) (replication.Finding, error) {
	req := block.Request{Op: block.OpRead, Off: off, Len: int64(len(p)), Data: p}
	err := block.Do(h.st, req)
	f := replication.FindingGood
	if errors.Is(err, block.ErrChecksum) {
		f = replication.FindingDamaged
		req.Flags = block.AsIs
		err = block.Do(h.st, req)
	}
	switch {
	case errors.Is(err, block.ErrClosed):
		return f, err
	case err != nil:
		f = replication.FindingUnreadable
	}
	return f, nil
}
