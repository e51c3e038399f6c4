// Package putback copies blocks from one device to another: those of a snapshot to the volume that it was taken of.
package putback

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/tandem-storage/tandem/datapath/block"
)

const (
	atOnce = 4         // pieces of block.MaxIO in flight
	often  = 64        // pieces from one call of before to the next
	grain  = 128 << 10 // bytes that are discarded together if all are zeroes
)

var zeroes [grain]byte

// Blocks makes to equal to from in the ranges, of which changed tells until its f returns false, ascending and in multiples of block.SectorSize. What is behind the end of from is
// zeroes. It returns how many bytes it has written or discarded, and on nil all is stable. It may be done again, also after it has ended in the middle.
//
// before is called before anything is written, and again and again after that; its error ends the copy. Nothing else may write to the ranges, nor to from.
func Blocks(ctx context.Context, to, from block.Device, changed func(f func(off, length int64) bool) error, before func() error) (written int64, err error) {
	if err := before(); err != nil {
		return 0, err
	}
	var done atomic.Int64
	var stop error
	n := 0
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	err = changed(func(off, length int64) bool {
		for length > 0 {
			if n++; n%often == 0 {
				stop = before()
			}
			if stop == nil {
				stop = gctx.Err()
			}
			if stop != nil {
				return false
			}
			at, size := off, min(length, block.MaxIO)
			g.Go(func() error {
				err := piece(to, from, at, size)
				if err == nil {
					done.Add(size)
				}
				return err
			})
			off, length = off+size, length-size
		}
		return true
	})
	failed := g.Wait()
	if failed != nil && errors.Is(stop, context.Canceled) && ctx.Err() == nil {
		stop = nil // it says why
	}
	if err = errors.Join(err, failed, stop); err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = block.Flush(to)
	}
	return done.Load(), err
}

// piece copies at most block.MaxIO.
func piece(to, from block.Device, off, length int64) error {
	buf := block.NewBuffer(int(length))
	defer buf.Release()
	p := buf.Bytes()
	has := min(max(from.Info().Size-off, 0), length)
	if has > 0 {
		if err := block.ReadAt(from, p[:has], off); err != nil {
			return err
		}
	}
	clear(p[has:])
	for len(p) > 0 {
		n, empty := run(p)
		var err error
		if empty {
			err = block.Discard(to, off, int64(n))
		} else {
			err = block.WriteAt(to, p[:n], off, 0)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// run is how much of p begins with grains that are empty, or that are not.
func run(p []byte) (n int, empty bool) {
	for n < len(p) {
		g := p[n:min(n+grain, len(p))]
		is := bytes.Equal(g, zeroes[:len(g)])
		if n > 0 && is != empty {
			break
		}
		n, empty = n+len(g), is
	}
	return n, empty
}
