package nbd

import (
	"fmt"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
)

// BenchmarkDevice is the way of a request through a Device, a unix socket and a Server to a device in memory, and back.
func BenchmarkDevice(b *testing.B) {
	const n = 4096
	s := startServer(b)
	attach(b, s, "vol", newMem(false))
	d := open(b, s.Addr(0).String())
	for _, depth := range []int{1, 32} {
		for _, op := range []block.Op{block.OpRead, block.OpWrite} {
			b.Run(fmt.Sprintf("%v depth=%d", op, depth), func(b *testing.B) {
				b.SetBytes(n)
				errs := make(chan error, depth)
				reqs := make(chan *block.Request, depth)
				for range depth {
					buf := block.NewBuffer(n)
					b.Cleanup(buf.Release)
					r := &block.Request{Op: op, Len: n, Data: buf.Bytes(), Buf: buf}
					r.By = block.CompleterFunc(func(r *block.Request, err error) {
						if err != nil {
							select {
							case errs <- err:
							default:
							}
						}
						reqs <- r
					})
					reqs <- r
				}
				for i := range b.N {
					r := <-reqs
					r.Off = int64(i%1024) * n
					d.Submit([]*block.Request{r})
				}
				for range depth {
					<-reqs
				}
				select {
				case err := <-errs:
					b.Fatal(err)
				default:
				}
			})
		}
	}
}
