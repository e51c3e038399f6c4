package nemesis

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Kind is what a request asks for.
type Kind string

// The kinds. A flush says nothing about what is read while nobody loses power, and is no part of a History.
const (
	Read  Kind = "r"
	Write Kind = "w"
	Zero  Kind = "z" // writes version 0
	Flush Kind = "f"
)

// Request is one request of a consumer, and its answer.
type Request struct {
	Attachment int // index into History.Attachments
	Kind       Kind
	First      int     // block
	Versions   []int64 // of each block, what it writes or has read
	Call       int64   // ns of CLOCK_MONOTONIC
	Return     int64   // 0: never answered
	OK         bool    // answered, and with success
}

// Writes reports whether the request writes.
func (r *Request) Writes() bool { return r.Kind == Write || r.Kind == Zero }

// Attachment is one attachment of the volume.
type Attachment struct {
	Active int64 // when the answer came that it is there, ns of CLOCK_MONOTONIC
}

// History is what happened to a volume from a moment at which nothing was in flight.
type History struct {
	Start       []int64 // version of each block at first
	Attachments []Attachment
	Requests    []*Request
}

// Left returns the blocks that a write without acknowledgement may have left different on the replicas, in order.
func (h *History) Left() []int {
	var blocks []int
	for _, r := range h.Requests {
		if r.OK || !r.Writes() {
			continue
		}
		for i := range r.Versions {
			blocks = append(blocks, r.First+i)
		}
	}
	slices.Sort(blocks)
	return slices.Compact(blocks)
}

// Damaged is the version of a block that holds nothing that was ever written to it.
const Damaged = -1

// parser reads what one consumer tells, see testdata/consumer.py.
type parser struct {
	attachment int
	open       map[string]*Request
}

// line takes a line. It returns the request that it begins, or the one that it answers; nil for a flush that begins.
func (p *parser) line(s string) (begun, answered *Request, err error) {
	f := strings.Fields(s)
	bad := fmt.Errorf("nemesis: a consumer said %q", s)
	switch {
	case len(f) == 7 && f[0] == "c": // c ID KIND FIRST COUNT VERSION NS
		first, err1 := strconv.Atoi(f[3])
		count, err2 := strconv.Atoi(f[4])
		version, err3 := strconv.ParseInt(f[5], 10, 64)
		at, err4 := strconv.ParseInt(f[6], 10, 64)
		if err1 != nil || err2 != nil || err3 != nil || err4 != nil {
			return nil, nil, bad
		}
		r := &Request{Attachment: p.attachment, Kind: Kind(f[2]), First: first, Call: at, Versions: make([]int64, count)}
		for i := range r.Versions {
			r.Versions[i] = version
		}
		p.open[f[1]] = r
		return r, nil, nil
	case len(f) >= 4 && f[0] == "r": // r ID NS ERRNO VERSION...
		r := p.open[f[1]]
		at, err1 := strconv.ParseInt(f[2], 10, 64)
		errno, err2 := strconv.Atoi(f[3])
		if r == nil || err1 != nil || err2 != nil {
			return nil, nil, bad
		}
		delete(p.open, f[1])
		r.Return, r.OK = at, errno == 0
		if r.OK && r.Kind == Read {
			if len(f)-4 != len(r.Versions) {
				return nil, nil, bad
			}
			for i, s := range f[4:] {
				if r.Versions[i], err = strconv.ParseInt(s, 10, 64); err != nil {
					return nil, nil, bad
				}
			}
		}
		return nil, r, nil
	}
	return nil, nil, bad
}
