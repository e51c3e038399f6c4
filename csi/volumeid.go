package csi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"regexp"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/volume/volumepb"
)

// VolumeID is the handle of a volume: the id of the daemon's API, which is unique for ever. Names are not taken for one.
type VolumeID string

var idSyntax = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// ParseVolumeID reads a handle. INVALID_ARGUMENT: it is empty. NOT_FOUND: there can be no such volume.
func ParseVolumeID(s string) (VolumeID, error) {
	switch {
	case s == "":
		return "", invalid("volume_id is missing")
	case !idSyntax.MatchString(s):
		return "", status.Errorf(codes.NotFound, "no volume has the handle %.64q", s)
	}
	return VolumeID(s), nil
}

func (v VolumeID) String() string { return string(v) }

// volume reads a volume by handle.
func (d *Driver) volume(ctx context.Context, id VolumeID) (*volumepb.Volume, error) {
	resp, err := d.o.Backend.InspectVolume(ctx, &volumepb.InspectVolumeRequest{Volume: id.String()})
	if err != nil {
		return nil, err
	}
	return resp.GetVolume(), nil
}

var nameSyntax = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)

// volumeName is the name of the volume that a CO calls so. It is the same, unless the daemon takes no such name.
func volumeName(name string) string {
	if nameSyntax.MatchString(name) && !idSyntax.MatchString(name) && len(name) <= 128 {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "csi-" + hex.EncodeToString(sum[:])
}
