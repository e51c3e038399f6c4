package lab

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Link says what becomes of the packets of one direction between two sites.
type Link struct {
	Lost     bool          // none arrives; those that are under way do
	LostKVDB bool          // none arrives of what the kvdb says and is told
	Delay    time.Duration // they arrive so much later, in order
	// Damaged is in how many TCP packets with data one arrives with other data, 0: in none. Their checksum fits, so that TCP takes them.
	Damaged int
}

// fabric carries packets between TUN devices, the wires between the sites. A
// packet is lost where a Link says so, where it arrives at a queue that is full, or
// where the receiver takes no more: what is above it has to cope, as with any network.
type fabric struct {
	kvdb    map[int]bool // TCP ports of the kvdb
	devices []*os.File
	links   [][]atomic.Pointer[Link] // from, to
	late    [][]chan packet          // of links with a delay; read in order
	done    chan struct{}
	running sync.WaitGroup
}

type packet struct {
	due  time.Time
	data []byte
}

const (
	mtu       = 65000 // few packets for much data: every one costs two system calls
	firstHost = 10    // last byte of the address of the first site
	queued    = 1024  // packets
)

func newFabric(sites int) *fabric {
	f := &fabric{kvdb: map[int]bool{}, devices: make([]*os.File, sites), links: make([][]atomic.Pointer[Link], sites), late: make([][]chan packet, sites), done: make(chan struct{})}
	for i := range sites {
		f.links[i] = make([]atomic.Pointer[Link], sites)
		for j := range sites {
			f.links[i][j].Store(&Link{})
			f.late[i] = append(f.late[i], make(chan packet, queued))
		}
	}
	return f
}

func (f *fabric) plug(i int, device *os.File) { f.devices[i] = device }

func (f *fabric) set(from, to int, l Link) { f.links[from][to].Store(&l) }

func (f *fabric) start() {
	for i := range f.devices {
		f.running.Go(func() { f.carry(i) })
		for j := range f.devices {
			if i != j {
				f.running.Go(func() { f.deliver(f.late[i][j], f.devices[j]) })
			}
		}
	}
}

// close ends the fabric; devices that were not plugged are nil.
func (f *fabric) close() error {
	close(f.done)
	var errs []error
	for _, d := range f.devices {
		if d != nil {
			errs = append(errs, d.Close())
		}
	}
	f.running.Wait()
	return errors.Join(errs...)
}

// carry takes what a site sends, until the end.
func (f *fabric) carry(from int) {
	buf := make([]byte, 1<<16)
	waiting := make([]time.Time, len(f.devices)) // the due time of the last packet that was queued for each
	passed := 0                                  // TCP packets with data, over links that damage some
	for {
		n, err := f.devices[from].Read(buf)
		if err != nil {
			return
		}
		to := destination(buf[:n])
		if to < 0 || to >= len(f.devices) || to == from {
			continue
		}
		link := *f.links[from][to].Load()
		if data := tcpData(buf[:n]); link.Damaged > 0 && len(data) > 0 {
			if passed++; passed%link.Damaged == 0 {
				damage(data)
			}
		}
		now := time.Now()
		switch {
		case link.Lost, link.LostKVDB && f.ofKVDB(buf[:n]):
		case link.Delay == 0 && !waiting[to].After(now):
			_, _ = f.devices[to].Write(buf[:n])
		default:
			waiting[to] = latest(now.Add(link.Delay), waiting[to])
			select {
			case f.late[from][to] <- packet{waiting[to], slices.Clone(buf[:n])}:
			default:
			}
		}
	}
}

// deliver writes queued packets when they are due.
func (f *fabric) deliver(queue <-chan packet, to *os.File) {
	timer := time.NewTimer(0)
	for {
		select {
		case <-f.done:
			return
		case p := <-queue:
			timer.Reset(time.Until(p.due))
			select {
			case <-f.done:
				return
			case <-timer.C:
				_, _ = to.Write(p.data)
			}
		}
	}
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// destination is the index of the site that an IPv4 packet goes to, or -1.
func destination(p []byte) int {
	if len(p) < 20 || p[0]>>4 != 4 {
		return -1
	}
	return int(p[19]) - firstHost
}

// tcpData is what a packet carries for TCP, nil if it is of something else.
func tcpData(p []byte) []byte {
	head := int(p[0]&15) * 4
	if p[9] != unix.IPPROTO_TCP || len(p) < head+20 {
		return nil
	}
	return p[min(head+int(p[head+12]>>4)*4, len(p)):]
}

// damage exchanges two words of data that differ, from the middle on: the sum of all words, which is TCP's checksum (RFC 9293, 3.1), stays as it is.
func damage(data []byte) {
	for i := len(data) / 2 &^ 1; i+4 <= len(data); i += 2 {
		if a, b := data[i:i+2], data[i+2:i+4]; a[0] != b[0] || a[1] != b[1] {
			a[0], a[1], b[0], b[1] = b[0], b[1], a[0], a[1]
			return
		}
	}
}

// ofKVDB reports whether a packet is of a TCP connection to the kvdb.
func (f *fabric) ofKVDB(p []byte) bool {
	head := int(p[0]&15) * 4
	if p[9] != unix.IPPROTO_TCP || len(p) < head+4 {
		return false
	}
	from, to := binary.BigEndian.Uint16(p[head:]), binary.BigEndian.Uint16(p[head+2:])
	return f.kvdb[int(from)] || f.kvdb[int(to)]
}
