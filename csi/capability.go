package csi

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/tandem-storage/tandem/csi/mount"
)

type accessMode = spec.VolumeCapability_AccessMode_Mode

// use is what a capability asks for, checked.
type use struct {
	block    bool
	fs       string // "" for block
	options  []string
	group    int // -1: none
	readOnly bool
	mode     accessMode
}

// leastSize is what mkfs wants at least, bytes.
func (u use) leastSize() int64 {
	switch u.fs {
	case mount.XFS:
		return 300 << 20
	case mount.Ext4:
		return 16 << 20
	default:
		return unit
	}
}

var (
	optionSyntax = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.=:+-]*$`)
	// optionsOfMount would have mount(8) do something else than mount the device.
	optionsOfMount = regexp.MustCompile(`^(bind|rbind|move|remount|loop|offset|sizelimit|encryption|helper|uhelper|defaults|user|users|owner|group|noauto|auto|_netdev|[xX][-_].*|r?(shared|sl.ve|private)|r?unbindable|comment)(=.*)?$`)
)

// parseUse checks a capability. INVALID_ARGUMENT: it is none, or one that no volume of this driver has; the text says why.
func parseUse(c *spec.VolumeCapability) (use, error) {
	u := use{group: -1, mode: c.GetAccessMode().GetMode()}
	switch u.mode {
	case spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
		spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
	case spec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:
		u.readOnly = true
	case spec.VolumeCapability_AccessMode_UNKNOWN:
		return u, invalid("volume_capability: the access mode is missing")
	default:
		return u, invalid("volume_capability: access mode %s: a volume is used on one node at a time", u.mode)
	}
	switch t := c.GetAccessType().(type) {
	case *spec.VolumeCapability_Block:
		u.block = true
	case *spec.VolumeCapability_Mount:
		if err := u.mount(t.Mount); err != nil {
			return u, invalid("volume_capability: %v", err)
		}
	default:
		return u, invalid("volume_capability: the access type is missing")
	}
	return u, nil
}

func (u *use) mount(m *spec.VolumeCapability_MountVolume) error {
	switch u.fs = m.GetFsType(); u.fs {
	case "":
		u.fs = mount.XFS
	case mount.XFS, mount.Ext4:
	default:
		return fmt.Errorf("file system %.32q is not known: use %s or %s", u.fs, mount.XFS, mount.Ext4)
	}
	for _, f := range m.GetMountFlags() {
		for o := range strings.SplitSeq(f, ",") {
			if !optionSyntax.MatchString(o) || optionsOfMount.MatchString(o) {
				return fmt.Errorf("a mount flag is not an option of a file system") // not told: some put passwords there
			}
			u.options = append(u.options, o)
		}
	}
	if g := m.GetVolumeMountGroup(); g != "" {
		gid, err := strconv.ParseUint(g, 10, 31)
		if err != nil {
			return fmt.Errorf("volume_mount_group %.32q is not a group id", g)
		}
		u.group = int(gid)
	}
	return nil
}

// parseUses checks all capabilities that a volume is to have, one at least.
func parseUses(cs []*spec.VolumeCapability) ([]use, error) {
	if len(cs) == 0 {
		return nil, invalid("volume_capabilities are missing")
	}
	us := make([]use, len(cs))
	for i, c := range cs {
		var err error
		if us[i], err = parseUse(c); err != nil {
			return nil, err
		}
	}
	return us, nil
}
