package lab

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// plugged returns a fabric of so many sites and the sites' ends of their devices.
func plugged(t *testing.T, sites int) (*fabric, []*os.File) {
	t.Helper()
	f := newFabric(sites)
	var ends []*os.File
	for i := range sites {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		end := os.NewFile(uintptr(fds[1]), "end")
		f.plug(i, os.NewFile(uintptr(fds[0]), "device"))
		ends = append(ends, end)
		t.Cleanup(func() { end.Close() })
	}
	f.start()
	t.Cleanup(func() {
		if err := f.close(); err != nil {
			t.Error(err)
		}
	})
	return f, ends
}

// send sends a packet to a site, with a byte to know it by.
func send(t *testing.T, from *os.File, to int, mark byte) {
	t.Helper()
	p := make([]byte, 21)
	p[0], p[19], p[20] = 0x45, byte(firstHost+to), mark
	if _, err := from.Write(p); err != nil {
		t.Fatal(err)
	}
}

// receive wants the packet with that mark to be the next one.
func receive(t *testing.T, at *os.File, mark byte) {
	t.Helper()
	p := make([]byte, 100)
	if err := at.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := at.Read(p)
	if err != nil || n != 21 || p[20] != mark {
		t.Fatalf("received %d bytes of packet %d, want %d: %v", n, p[20], mark, err)
	}
}

// TestFabric wants packets where they are sent to, but for those that are lost, which are those of one direction.
func TestFabric(t *testing.T) {
	f, ends := plugged(t, 3)
	send(t, ends[0], 1, 1)
	receive(t, ends[1], 1)
	send(t, ends[1], 0, 2)
	receive(t, ends[0], 2)
	f.set(0, 1, Link{Lost: true})
	send(t, ends[0], 1, 3)
	send(t, ends[0], 2, 4) // in order after the lost one
	receive(t, ends[2], 4)
	send(t, ends[1], 0, 5)
	receive(t, ends[0], 5)
	f.set(0, 1, Link{})
	send(t, ends[0], 1, 6)
	receive(t, ends[1], 6)

	for _, p := range [][]byte{{0x45}, make([]byte, 60)} { // neither is an IPv4 packet
		if _, err := ends[0].Write(p); err != nil {
			t.Fatal(err)
		}
	}
	send(t, ends[0], 7, 7) // and nobody lives there
	send(t, ends[0], 1, 8)
	receive(t, ends[1], 8)
}

// TestFabricKVDB wants only packets of the kvdb lost, by either port.
func TestFabricKVDB(t *testing.T) {
	f, ends := plugged(t, 2)
	f.kvdb[2379] = true
	f.set(0, 1, Link{LostKVDB: true})
	segment := func(protocol byte, from, to uint16) {
		p := make([]byte, 28)
		p[0], p[9], p[19] = 0x45, protocol, byte(firstHost+1)
		binary.BigEndian.PutUint16(p[20:], from)
		binary.BigEndian.PutUint16(p[22:], to)
		if _, err := ends[0].Write(p); err != nil {
			t.Fatal(err)
		}
	}
	segment(unix.IPPROTO_TCP, 2379, 5000)
	segment(unix.IPPROTO_TCP, 5000, 2379)
	segment(unix.IPPROTO_TCP, 5000, 7000)
	segment(unix.IPPROTO_UDP, 5001, 2379)
	send(t, ends[0], 1, 1) // too short for ports
	for _, want := range []uint16{5000, 5001} {
		p := make([]byte, 100)
		if n, err := ends[1].Read(p); err != nil || n != 28 || binary.BigEndian.Uint16(p[20:]) != want {
			t.Errorf("received %d bytes from port %d, want %d: %v", n, binary.BigEndian.Uint16(p[20:]), want, err)
		}
	}
	receive(t, ends[1], 1)
}

// TestFabricDelay wants late packets late and in order, also those that are sent when the delay has ended.
func TestFabricDelay(t *testing.T) {
	f, ends := plugged(t, 2)
	const delay = 50 * time.Millisecond
	f.set(0, 1, Link{Delay: delay})
	at := time.Now()
	for i := range byte(5) {
		send(t, ends[0], 1, i)
	}
	send(t, ends[1], 0, 9)
	receive(t, ends[0], 9)
	receive(t, ends[1], 0)
	if took := time.Since(at); took < delay {
		t.Errorf("a packet took %v, want %v", took, delay)
	}
	f.set(0, 1, Link{})
	send(t, ends[0], 1, 5)
	for i := range byte(5) {
		receive(t, ends[1], i+1)
	}
}

// TestNetworks makes networks and wants them gone with what made them.
func TestNetworks(t *testing.T) {
	if _, err := os.Stat("/dev/net/tun"); os.Geteuid() != 0 || err != nil {
		t.Skip("not root, or no /dev/net/tun")
	}
	var u Undo
	c, err := NewCluster(Spec{Work: t.TempDir(), Networks: true, Nodes: []NodeSpec{{Name: "a1", Site: "alpha"}, {Name: "b1", Site: "beta"}}}, &u)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := u.Run(); err != nil {
			t.Error(err)
		}
	}()
	if err := c.nets.make(t.Context(), &u); err != nil {
		t.Fatal(err)
	}
	if out, err := Run(t.Context(), c.inside("alpha", "ip", "-brief", "addr", "show", device)...); err != nil || out == "" {
		t.Errorf("alpha has %q: %v", out, err)
	}
	if conn, err := c.dial(t.Context(), "alpha", "udp", c.nets.at("beta", 7)); err != nil {
		t.Error(err)
	} else {
		if at := conn.LocalAddr().String(); !strings.HasPrefix(at, c.nets.address(0)+":") {
			t.Errorf("dialled in alpha from %s", at)
		}
		_ = conn.Close()
	}
	if _, err := os.Stat("/sys/class/net/" + device); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the device of a site is in the network of the host: %v", err)
	}
}

// TestDamage: what is damaged differs, and TCP's checksum does not tell.
func TestDamage(t *testing.T) {
	sum := func(p []byte) (n uint32) {
		for ; len(p) > 1; p = p[2:] {
			n += uint32(binary.BigEndian.Uint16(p))
		}
		return n
	}
	for size := 1; size < 64; size++ {
		p := make([]byte, 40+size)
		p[0], p[9], p[32] = 0x45, unix.IPPROTO_TCP, 5<<4
		for i := range size {
			p[40+i] = byte(i)
		}
		before := slices.Clone(p)
		damage(tcpData(p))
		if sum(p) != sum(before) || !slices.Equal(p[:40], before[:40]) {
			t.Errorf("%d bytes of data: the checksum or the header was changed", size)
		}
		if size >= 8 && slices.Equal(p, before) {
			t.Errorf("%d bytes of data were not damaged", size)
		}
	}
}
