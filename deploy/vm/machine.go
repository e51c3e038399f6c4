package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
	"github.com/tandem-storage/tandem/deploy/vm/order"
)

// MachineSpec says what machine to make.
type MachineSpec struct {
	Name          string
	Work          string // directory for sockets and logs
	Kernel, Image string // files
	NBD           string // the socket that shows the disks
	Disks         []*Disk
	Network       *Network
	Tap, MAC      string // its device in the network
	// News is called with every line of a writer or of the daemon's end, in order, from one goroutine at a time.
	News func(order.Line)
}

// Machine is a virtual machine, switched off at first. Power is one caller's at a time, Ask anybody's.
type Machine struct {
	MachineSpec
	Log string // of the daemon in it, of all its lives

	proc  *lab.Process
	conn  net.Conn
	heard chan struct{} // closed when the last line of a life was heard

	mu      sync.Mutex
	last    int // request
	waiting map[int]chan order.Line
	gone    error // why nobody answers
}

// ErrOff means that the machine has no power, or lost it.
var ErrOff = errors.New("vm: the machine is off")

// NewMachine makes a machine.
func NewMachine(s MachineSpec) *Machine {
	return &Machine{MachineSpec: s, Log: filepath.Join(s.Work, s.Name+".log"), gone: ErrOff}
}

// console is where the kernel and the agent write before there is anything better.
func (m *Machine) console() string { return filepath.Join(m.Work, m.Name+".console") }

// bootLimit is how long a machine may take until its agent answers: some seconds, and many times that where it is not given a processor.
const bootLimit = 10 * time.Minute

// Boot switches the machine on and returns when its agent answers.
func (m *Machine) Boot(ctx context.Context, u *lab.Undo) error {
	socket := filepath.Join(m.Work, m.Name+".sock")
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	for _, d := range m.Disks {
		if err := d.PowerOn(ctx); err != nil {
			return err
		}
	}
	m.proc, err = lab.StartProcess("qemu "+m.Name, filepath.Join(m.Work, m.Name+".qemu"), nil, m.Network.Inside(m.command(socket)...)...)
	if err != nil {
		return err
	}
	u.Add("qemu "+m.Name, m.proc.Kill)
	if err := l.SetDeadline(time.Now().Add(bootLimit)); err != nil {
		return err
	}
	if m.conn, err = l.Accept(); err != nil {
		return fmt.Errorf("qemu does not connect: %w\n%s", err, lab.Tail(filepath.Join(m.Work, m.Name+".qemu"), 5))
	}
	ready := make(chan struct{})
	m.heard = make(chan struct{})
	m.mu.Lock()
	m.gone, m.waiting = nil, map[int]chan order.Line{}
	m.mu.Unlock()
	go m.hear(m.conn, ready, m.heard)
	select {
	case <-ready:
		return nil
	case <-m.proc.Done():
		return fmt.Errorf("the machine went off while it booted\n%s", lab.Tail(m.console(), 20))
	case <-time.After(bootLimit):
		return fmt.Errorf("the machine is not up after %v\n%s", bootLimit, lab.Tail(m.console(), 20))
	}
}

func (m *Machine) command(socket string) []string {
	argv := []string{
		// Without CMPXCHG16B, after which qemu 7.2 leaves other flags than a processor does: Linux 6.12 uses it everywhere.
		"qemu-system-x86_64", "-accel", "tcg", "-cpu", "max,-cx16", "-smp", "1", "-m", "768",
		"-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", m.Kernel, "-initrd", m.Image, "-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on",
		"-chardev", "file,id=console,append=on,path=" + m.console(), "-serial", "chardev:console",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=orders,path=" + socket, "-device", "virtserialport,chardev=orders,name=tandem.orders",
		"-chardev", "file,id=log,append=on,path=" + m.Log, "-device", "virtserialport,chardev=log,name=tandem.log",
		"-netdev", "tap,id=net,script=no,downscript=no,ifname=" + m.Tap, "-device", "virtio-net-pci,romfile=,netdev=net,mac=" + m.MAC,
	}
	for i, d := range m.Disks {
		// cache=none: the guest sees a write cache, its flushes reach the Disk, and qemu keeps nothing.
		argv = append(argv,
			"-drive", fmt.Sprintf("if=none,id=disk%d,format=raw,cache=none,discard=unmap,file=nbd:unix:%s:exportname=%s", i, m.NBD, d.name),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d,logical_block_size=512,physical_block_size=4096", i))
	}
	return argv
}

// hear reads what the agent says until the end of the machine.
func (m *Machine) hear(conn net.Conn, ready, heard chan struct{}) {
	defer close(heard)
	defer conn.Close()
	r := bufio.NewReader(conn)
	var err error
	for {
		var data []byte
		if data, err = r.ReadBytes('\n'); err != nil {
			break
		}
		var line order.Line
		if err = json.Unmarshal(data, &line); err != nil {
			err = fmt.Errorf("the agent says %.100q: %w", data, err)
			break
		}
		switch {
		case line.Ready:
			close(ready)
		case line.ID != 0:
			m.mu.Lock()
			if c := m.waiting[line.ID]; c != nil {
				c <- line
				delete(m.waiting, line.ID)
			}
			m.mu.Unlock()
		default:
			m.News(line)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone = fmt.Errorf("%w: %w", ErrOff, err)
	for _, c := range m.waiting {
		close(c)
	}
	m.waiting = nil
}

// Ask orders something of the agent and waits until it is done.
func (m *Machine) Ask(ctx context.Context, q order.Request) (order.Line, error) {
	m.mu.Lock()
	if m.gone != nil {
		defer m.mu.Unlock()
		return order.Line{}, fmt.Errorf("%s: %s: %w", m.Name, q.Op, m.gone)
	}
	m.last++
	q.ID = m.last
	answer := make(chan order.Line, 1)
	m.waiting[q.ID] = answer
	data, err := json.Marshal(q)
	if err == nil {
		_, err = m.conn.Write(append(data, '\n'))
	}
	m.mu.Unlock()
	if err != nil {
		return order.Line{}, fmt.Errorf("%s: %s: %w", m.Name, q.Op, err)
	}
	select {
	case line, ok := <-answer:
		switch {
		case !ok:
			return line, fmt.Errorf("%s: %s: %w", m.Name, q.Op, ErrOff)
		case line.Error != "":
			return line, fmt.Errorf("%s: %s: %s", m.Name, q.Op, line.Error)
		}
		return line, nil
	case <-ctx.Done():
		return order.Line{}, fmt.Errorf("%s: %s %v: %w", m.Name, q.Op, q.Argv, ctx.Err())
	}
}

// Run runs a program in the machine and returns its standard output.
func (m *Machine) Run(ctx context.Context, argv ...string) (string, error) {
	line, err := m.Ask(ctx, order.Request{Op: order.Exec, Argv: argv})
	return line.Out, err
}

// Remove takes away a machine whose disks are dark, and returns when all that it said was heard.
func (m *Machine) Remove(ctx context.Context) error {
	if err := m.proc.Kill(); err != nil {
		return err
	}
	<-m.heard
	for _, d := range m.Disks {
		if err := d.Bury(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Died returns an error if the machine went off by itself.
func (m *Machine) Died() error {
	if m.proc == nil {
		return nil
	}
	if err := m.proc.Died(); err != nil {
		return fmt.Errorf("%w\n%s", err, lab.Tail(m.console(), 20))
	}
	return nil
}
