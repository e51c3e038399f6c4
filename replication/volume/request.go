package volume

import (
	"sync"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
)

// volumeIO is a request under way in a volume.
type volumeIO struct {
	io   core.IO
	req  *block.Request
	buf  *block.Buffer
	sums [block.MaxIO / block.SectorSize]uint32
}

var volumeIOs = sync.Pool{New: func() any {
	o := new(volumeIO)
	o.io.User = o
	return o
}}

// Submit implements block.Device.
func (v *Volume) Submit(batch []*block.Request) {
	info := v.Info()
	ins := inputSlices.Get().(*[]volumeInput)
	for _, r := range batch {
		if err := r.Check(info); err != nil {
			r.By.Complete(r, err)
			continue
		}
		v.pending.Add(1)
		if v.blocked.Load() {
			v.completed(r, block.ErrClosed)
			continue
		}
		*ins = append(*ins, volumeInput{kind: inPropose, io: newVolumeIO(r)})
	}
	if len(*ins) > 0 {
		v.post(*ins...)
	}
	clear(*ins)
	*ins = (*ins)[:0]
	inputSlices.Put(ins)
}

var inputSlices = sync.Pool{New: func() any { return new([]volumeInput) }}

// newVolumeIO makes the private copy and the checksums that go with a write to
// every disk (I26).
func newVolumeIO(r *block.Request) *volumeIO {
	o := volumeIOs.Get().(*volumeIO)
	o.req = r
	io := &o.io
	io.Off, io.Len, io.Flags = r.Off, r.Len, 0
	if r.Flags&block.FUA != 0 {
		io.Flags |= replication.FlagFUA
	}
	switch r.Op {
	case block.OpRead:
		io.Kind, io.Data = replication.MsgRead, r.Data
	case block.OpWrite:
		io.Kind = replication.MsgWrite
		if o.buf = r.Buf; o.buf != nil {
			o.buf.Retain()
			io.Data = r.Data
		} else {
			o.buf = block.NewBuffer(len(r.Data))
			copy(o.buf.Bytes(), r.Data)
			io.Data = o.buf.Bytes()
		}
		io.Buf = o.buf
		if r.Sums != nil {
			io.Sums = append(o.sums[:0], r.Sums...)
		} else {
			io.Sums = sumsOf(o.sums[:0], io.Data)
		}
	case block.OpWriteZeroes:
		io.Len = min(r.Len, maxZero)
		io.Kind = replication.MsgZero
		if r.Flags&block.NoHole != 0 {
			io.Flags |= replication.FlagNoHole
		}
	case block.OpDiscard:
		io.Len = min(r.Len, maxZero)
		io.Kind = replication.MsgTrim
	case block.OpFlush:
		io.Kind = replication.MsgFlush
	}
	return o
}

// maxZero bounds one zeroing or discard, in bytes: a larger one goes in pieces,
// one after the other, so that it neither locks much of the volume at once nor
// takes a replica long.
const maxZero = 64 << 20

// finish completes the consumer's request, or lets its next piece follow.
func (v *Volume) finish(o *volumeIO, err error) {
	if left := o.req.Off + o.req.Len - (o.io.Off + o.io.Len); err == nil && left > 0 && o.io.Kind != replication.MsgFlush {
		n := volumeIOs.Get().(*volumeIO)
		n.req = o.req
		n.io.Kind, n.io.Flags, n.io.Off, n.io.Len = o.io.Kind, o.io.Flags, o.io.Off+o.io.Len, min(left, maxZero)
		v.post(volumeInput{kind: inPropose, io: n})
		return
	}
	v.completed(o.req, err)
}

// completed answers the consumer.
func (v *Volume) completed(r *block.Request, err error) {
	r.By.Complete(r, err)
	if v.pending.Add(-1) == 0 && v.blocked.Load() {
		v.idleOne.Do(func() { close(v.idle) })
	}
}

func (o *volumeIO) recycle() {
	if o.buf != nil {
		o.buf.Release()
	}
	o.req, o.buf = nil, nil
	o.io = core.IO{User: o}
	volumeIOs.Put(o)
}
