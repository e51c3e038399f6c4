// Package doctor measures what a cluster stands on, and judges it: round trips, clocks, path MTU, disks, the kvdb. Each node
// measures when it is asked, in bounded time, with a few small requests; nothing else goes on by it.
package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	pb "github.com/tandem-storage/tandem/cmd/internal/doctor/doctorpb"
)

// How much is measured.
const (
	probes       = 20
	probeTimeout = 500 * time.Millisecond
	syncs        = 8
	reads        = 8
	// measureTimeout bounds what one node does. A disk that hangs is left hanging, and told as such.
	measureTimeout = 4 * time.Second
)

// Peer is another node.
type Peer struct {
	Name, Address string
	P50, P99      time.Duration // of beats in the last minute
	Samples       int
}

// Node is what a node measures from.
type Node struct {
	Peers  func() []Peer
	Dial   func(p Peer) (*grpc.ClientConn, error)
	Pools  []string                        // directories
	Read   func(ctx context.Context) error // asks a majority of the kvdb for something
	Timers *pb.Timers
}

// Measurer implements the gRPC service Measurer.
type Measurer struct {
	pb.UnimplementedMeasurerServer
	n func() (Node, error) // fails while the node is starting
}

// NewMeasurer returns the service of a node.
func NewMeasurer(n func() (Node, error)) *Measurer { return &Measurer{n: n} }

// Probe implements Measurer.
func (m *Measurer) Probe(context.Context, *pb.ProbeRequest) (*pb.ProbeResponse, error) {
	return &pb.ProbeResponse{UnixNs: time.Now().UnixNano()}, nil
}

// Measure implements Measurer.
func (m *Measurer) Measure(ctx context.Context, _ *pb.MeasureRequest) (*pb.MeasureResponse, error) {
	n, err := m.n()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, measureTimeout)
	defer cancel()
	return n.measure(ctx), nil
}

// measure does everything at once, but for the disks that are measured one after the other.
func (n *Node) measure(ctx context.Context) *pb.MeasureResponse {
	r := &pb.MeasureResponse{Timers: n.Timers}
	links, disks, kvdb := make(chan *pb.Link), make(chan []*pb.Disk, 1), make(chan struct{})
	peers := n.Peers()
	for _, p := range peers {
		go func() { links <- n.link(ctx, p) }()
	}
	go func() { disks <- measureDisks(ctx, n.Pools) }()
	go func() {
		defer close(kvdb)
		var err error
		if r.Kvdb, err = repeat(reads, func() error { return n.Read(ctx) }); err != nil {
			r.KvdbError = err.Error()
		}
	}()
	for range peers {
		r.Links = append(r.Links, <-links)
	}
	slices.SortFunc(r.Links, func(a, b *pb.Link) int { return cmp.Compare(a.Node, b.Node) })
	<-kvdb
	r.Disks = <-disks
	return r
}

// repeat times f, n times, until it fails.
func repeat(n int, f func() error) (*pb.Latency, error) {
	var took []time.Duration
	for range n {
		start := time.Now()
		if err := f(); err != nil {
			return latency(took), err
		}
		took = append(took, time.Since(start))
	}
	return latency(took), nil
}

func latency(took []time.Duration) *pb.Latency {
	if len(took) == 0 {
		return &pb.Latency{}
	}
	slices.Sort(took)
	return &pb.Latency{Samples: uint32(len(took)), P50Us: took[len(took)/2].Microseconds(), MaxUs: took[len(took)-1].Microseconds()}
}

// link probes another node.
func (n *Node) link(ctx context.Context, p Peer) *pb.Link {
	l := &pb.Link{Node: p.Name, P50Us: p.P50.Microseconds(), P99Us: p.P99.Microseconds(), Mtu: uint32(pathMTU(p.Address))}
	cc, err := n.Dial(p)
	if err != nil {
		l.Error = err.Error()
		return l
	}
	defer func() { _ = cc.Close() }() // nothing is left to send
	client := pb.NewMeasurerClient(cc)
	probe := func() (rtt, clock time.Duration, err error) {
		pctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		start := time.Now()
		r, err := client.Probe(pctx, &pb.ProbeRequest{})
		rtt = time.Since(start)
		if err == nil {
			clock = time.Unix(0, r.UnixNs).Sub(start.Round(0)) - rtt/2
		}
		return rtt, clock, err
	}
	if _, _, err := probe(); err != nil { // this one dials
		l.Sent, l.Error = 1, err.Error()
		return l
	}
	var rtts []time.Duration
	var jitter, best time.Duration
	for range probes {
		rtt, clock, err := probe()
		l.Sent++
		if err != nil {
			l.Error = err.Error()
			if ctx.Err() != nil {
				break
			}
			continue
		}
		if len(rtts) == 0 || rtt < best { // the shortest says the most about the clock
			best, l.ClockUs = rtt, clock.Microseconds()
		}
		if len(rtts) > 0 {
			jitter += (rtt - rtts[len(rtts)-1]).Abs()
		}
		rtts = append(rtts, rtt)
	}
	l.Answered = uint32(len(rtts))
	if len(rtts) == 0 {
		return l
	}
	l.JitterUs = (jitter / time.Duration(max(1, len(rtts)-1))).Microseconds()
	if p.Samples == 0 {
		d := latency(rtts)
		l.P50Us, l.P99Us = d.P50Us, d.MaxUs
	}
	return l
}

// pathMTU is the MTU of the path to a host:port as the kernel knows it, 0 if it does not.
func pathMTU(address string) int {
	c, err := net.Dial("udp", address) // sends nothing
	if err != nil {
		return 0
	}
	defer func() { _ = c.Close() }() // nothing was sent
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return 0
	}
	mtu, level, opt := 0, unix.IPPROTO_IP, unix.IP_MTU
	if a, ok := c.RemoteAddr().(*net.UDPAddr); ok && a.IP.To4() == nil {
		level, opt = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	if err := raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), level, opt) }); err != nil {
		return 0
	}
	return mtu
}

// measureDisks syncs a little in each directory.
func measureDisks(ctx context.Context, dirs []string) []*pb.Disk {
	var disks []*pb.Disk
	for _, dir := range dirs {
		d := &pb.Disk{Path: dir}
		done := make(chan error, 1)
		var lat *pb.Latency
		go func() {
			var err error
			lat, err = syncIn(dir)
			done <- err
		}()
		select {
		case err := <-done:
			if d.Sync = lat; err != nil {
				d.Error = err.Error()
			}
		case <-ctx.Done():
			d.Error = "the disk does not answer"
		}
		disks = append(disks, d)
	}
	return disks
}

// syncIn writes and syncs 4 KiB, some times, in a file that never has a name.
func syncIn(dir string) (_ *pb.Latency, err error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("scratch file in %s: %w", dir, err)
	}
	defer func() { _ = unix.Close(fd) }() // what was in it is of no use
	block := make([]byte, 4096)
	return repeat(syncs, func() error {
		if _, err := unix.Pwrite(fd, block, 0); err != nil {
			return fmt.Errorf("write to %s: %w", dir, err)
		}
		if err := unix.Fdatasync(fd); err != nil {
			return fmt.Errorf("sync in %s: %w", dir, err)
		}
		return nil
	})
}
