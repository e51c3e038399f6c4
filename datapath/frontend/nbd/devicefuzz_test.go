package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/datapath/block"
)

// FuzzAnswers is a server that answers whatever it likes: nothing is completed twice, nothing panics, and nonsense is an error.
func FuzzAnswers(f *testing.F) {
	reply := func(index uint32, e errno, data int) []byte {
		b := make([]byte, simpleHead+data)
		putSimple(b, e, uint64(index+1)<<32|uint64(index))
		return b
	}
	f.Add(bytes.Join([][]byte{reply(0, 0, 4096), reply(1, 0, 0), reply(2, 0, 0), reply(3, 0, 0)}, nil), uint64(1))
	f.Add(bytes.Join([][]byte{reply(3, errnoIO, 0), reply(1, errnoNoSpace, 0), reply(0, errnoInval, 0)}, nil), uint64(2))
	f.Add(bytes.Join([][]byte{reply(1, 0, 0), reply(1, 0, 0)}, nil), uint64(3))
	f.Add(reply(0, 0, 100), uint64(4))
	f.Add(reply(9, 0, 0), uint64(5))
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		d := &Device{lg: zap.NewNop(), wake: make(chan struct{}, 1), export: remote{size: 1 << 20, flags: fakeFlags, minBlock: 4096, maxPayload: 8192}}
		d.info = d.export.info()
		d.size.Store(d.info.Size)
		completed := map[*block.Request]int{}
		by := block.CompleterFunc(func(r *block.Request, _ error) { completed[r]++ })
		reqs := []*block.Request{
			{Op: block.OpRead, Len: 4096, Data: make([]byte, 4096)}, {Op: block.OpWrite, Len: 12288, Data: make([]byte, 12288)}, {Op: block.OpFlush},
		}
		for _, r := range reqs {
			r.By = by
		}
		d.Submit(reqs)
		pieces, _ := d.take(nil, nil, make([]byte, sendMost*requestHead))
		if seed&1 != 0 {
			d.taken(pieces)
		}
		err := d.receive(&scriptLink{in: in, rng: rand.New(rand.NewPCG(seed, 0))})
		if !errors.Is(err, io.EOF) && !errors.Is(err, ErrNonsense) {
			t.Fatalf("it ended with %v", err)
		}
		d.settle()
		again := d.rewind()
		d.mu.Lock()
		for d.first != nil {
			j := d.endLocked(d.first, io.EOF)
			again--
			j.complete()
		}
		d.mu.Unlock()
		if again != 0 || d.last != nil || d.unsent != nil || len(d.free) != len(d.table) {
			t.Fatalf("%d commands are left over", again)
		}
		for _, r := range reqs {
			if completed[r] != 1 {
				t.Fatalf("%v was completed %d times", r.Op, completed[r])
			}
		}
	})
}

// script is a connection whose other end says in.
type script struct {
	io.Reader
	io.Writer
}

// FuzzChoose is a server that says whatever it likes in the handshake.
func FuzzChoose(f *testing.F) {
	greeting := binary.BigEndian.AppendUint64(nil, magicServer)
	greeting = binary.BigEndian.AppendUint64(greeting, magicOption)
	greeting = binary.BigEndian.AppendUint16(greeting, flagFixedNewstyle|flagNoZeroes)
	add := func(parts ...[]byte) { f.Add(append(bytes.Clone(greeting), bytes.Join(parts, nil)...)) }
	add(sizeInfo(1<<20, fakeFlags), blockInfo(512, 1<<20), optReply(repAck, nil))
	add(optReply(repErrUnknown, []byte("gone")))
	add(sizeInfo(1<<63, 0xffff), blockInfo(0, 0), optReply(repAck, nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := remote{minBlock: defaultMinBlock, maxPayload: defaultMaxPayload}
		if r.choose(script{bytes.NewReader(in), io.Discard}, "vol") != nil || r.check() != nil {
			return
		}
		i := r.info()
		if i.Size <= 0 || i.Size%int64(i.BlockSize) != 0 || i.BlockSize < 512 || r.maxPayload%int64(i.BlockSize) != 0 || r.maxPayload <= 0 || r.maxPayload > block.MaxIO {
			t.Fatalf("accepted %+v, largest request %d", i, r.maxPayload)
		}
		if err := r.follows(&r); err != nil {
			t.Fatal(err)
		}
	})
}
