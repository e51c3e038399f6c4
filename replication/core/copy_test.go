package core

import (
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// What a copy without comparison has read is sent as runs of zeroes and of data,
// each with its own checksums, up to an end that is no whole block.
func TestWriteCopy(t *testing.T) {
	const (
		rb  = int64(replication.ResyncBlock)
		end = 4*rb - block.SectorSize
	)
	msg := &replication.Message{Data: make([]byte, end), Sums: make([]uint32, end/block.SectorSize)}
	for i := range msg.Sums {
		msg.Sums[i] = uint32(i)
	}
	msg.Data[2*rb-1] = 1 // the last byte of the second block, and the first of the third
	msg.Data[2*rb] = 1
	c := &Coordinator{m: []*member{{}, {}, {}}, reqs: map[replication.Seq]copyRequest{}}
	c.writeCopy(copyRequest{job: &copyJob{}, off: 7 * rb, n: end, dst: bit(1) | bit(2)}, msg)

	type run struct{ to, off, n, data, sum int64 }
	var got []run
	for _, o := range c.ready.Messages {
		r := run{int64(o.To), o.Msg.Offset - 7*rb, o.Msg.Length, int64(len(o.Msg.Data)), -1}
		if o.Msg.Data != nil {
			r.sum = int64(o.Msg.Sums[0])
			if int64(len(o.Msg.Sums))*block.SectorSize != r.n || &o.Msg.Data[0] != &msg.Data[r.off] {
				t.Errorf("%d checksums for %d bytes", len(o.Msg.Sums), r.n)
			}
		}
		got = append(got, r)
	}
	want := []run{
		{1, 0, rb, 0, -1}, {2, 0, rb, 0, -1},
		{1, rb, 2 * rb, 2 * rb, rb / block.SectorSize}, {2, rb, 2 * rb, 2 * rb, rb / block.SectorSize},
		{1, 3 * rb, rb - block.SectorSize, 0, -1}, {2, 3 * rb, rb - block.SectorSize, 0, -1},
	}
	if len(got) != len(want) {
		t.Fatalf("sent %v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("sent %v, want %v", got[i], want[i])
		}
	}
}
