// Package mounttest has a machine without a kernel for tests of what mounts.
package mounttest

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"

	"github.com/tandem-storage/tandem/csi/mount"
)

// Machine remembers what is mounted. Devices are plugged in by the test. Methods may be called concurrently.
type Machine struct {
	mu      sync.Mutex
	devices map[string]*Device
	points  []mount.Point

	// FormatErr is what the next Format fails with, after it has written.
	FormatErr error
	// Options are those of the last Mount.
	Options []string
}

// Device is a block device.
type Device struct {
	Backing string // as in mount.Point
	Holds   string // what it holds: a file system, "" for zeros, anything else for other data
	Formats int    // how often it was formatted
	Grown   int    // how often its file system was
	GrowErr error  // what Grow fails with
}

// Plug makes a device, or returns the one that is there, under another backing file.
func (m *Machine) Plug(path, backing string) *Device {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.devices == nil {
		m.devices = map[string]*Device{}
	}
	if m.devices[path] == nil {
		m.devices[path] = &Device{}
	}
	m.devices[path].Backing = backing
	return m.devices[path]
}

// Format implements mount.System's.
func (m *Machine) Format(_ context.Context, device, fs string, _ []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.devices[device]
	d.Formats++
	if err := m.FormatErr; err != nil {
		m.FormatErr, d.Holds = nil, "half of "+fs
		return err
	}
	d.Holds = fs
	return nil
}

// Grow implements mount.System's.
func (m *Machine) Grow(_ context.Context, device, target, fs string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, at := m.devices[device], m.at(target)
	if at == nil || at.Device != device || at.ReadOnly || d.Holds != fs {
		return fmt.Errorf("%w: grow %s on %s at %s", mount.ErrCommand, fs, device, target)
	}
	if d.GrowErr != nil {
		return d.GrowErr
	}
	d.Grown++
	return nil
}

// CheckZero implements mount.System's.
func (m *Machine) CheckZero(device string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := m.devices[device].Holds; h != "" {
		return fmt.Errorf("%w: %s", mount.ErrNotZero, h)
	}
	return nil
}

// Mount implements mount.System's.
func (m *Machine) Mount(_ context.Context, device, target, fs string, options []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.devices[device]
	if d.Holds != fs {
		return fmt.Errorf("%w: mount: wrong fs type, bad superblock on %s", mount.ErrCommand, device)
	}
	p := mount.Point{Target: resolved(target), FS: fs, Device: device}
	m.Options = slices.Clone(options)
	for _, o := range options {
		p.ReadOnly = p.ReadOnly || o == "ro"
	}
	m.points = append(m.points, p)
	return nil
}

// Bind implements mount.System's.
func (m *Machine) Bind(source, target string, readOnly bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := mount.Point{Target: resolved(target), ReadOnly: readOnly}
	if m.devices[source] != nil {
		p.Device, p.Block, p.FS = source, true, "devtmpfs"
	} else if at := m.at(source); at != nil {
		p.Device, p.FS, p.ReadOnly = at.Device, at.FS, at.ReadOnly || readOnly
	} else {
		return fmt.Errorf("bind: nothing is at %s", source)
	}
	m.points = append(m.points, p)
	return nil
}

// Unmount implements mount.System's.
func (m *Machine) Unmount(target string, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := len(m.points) - 1; i >= 0; i-- {
		if m.points[i].Target == resolved(target) {
			m.points = append(m.points[:i], m.points[i+1:]...)
			return nil
		}
	}
	return fmt.Errorf("unmount: nothing is at %s", target)
}

// resolved is path as the kernel knows it: without symbolic links, but for its last element.
func resolved(path string) string {
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return path
	}
	return filepath.Join(parent, filepath.Base(path))
}

func (m *Machine) at(path string) *mount.Point {
	for i := len(m.points) - 1; i >= 0; i-- {
		if m.points[i].Target == resolved(path) {
			p := m.points[i]
			p.Backing = m.devices[p.Device].Backing
			return &p
		}
	}
	return nil
}

// At implements mount.System's.
func (m *Machine) At(path string) (*mount.Point, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.at(path), nil
}

// List implements mount.System's.
func (m *Machine) List() ([]mount.Point, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ps []mount.Point
	for _, p := range m.points {
		p.Backing = m.devices[p.Device].Backing
		ps = append(ps, p)
	}
	return ps, nil
}

// Usage implements mount.System's.
func (m *Machine) Usage(string) (mount.Usage, error) {
	return mount.Usage{TotalBytes: 1 << 30, FreeBytes: 1 << 29, AvailableBytes: 1 << 29, TotalInodes: 1000, FreeInodes: 900}, nil
}

// SetGroup implements mount.System's.
func (m *Machine) SetGroup(string, int) error { return nil }
