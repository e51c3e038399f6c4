package volume

import (
	"strings"

	"github.com/tandem-storage/tandem/replication"
)

// keys are the keys of one cluster.
type keys struct{ root string }

func newKeys(cluster string) keys { return keys{"/tandem/" + cluster + "/"} }

func (k keys) volumes() string                         { return k.root + "volume/" }
func (k keys) volume(v replication.VolumeID) string    { return k.volumes() + v.String() + "/" }
func (k keys) spec(v replication.VolumeID) string      { return k.volume(v) + "spec" }
func (k keys) made(v replication.VolumeID) string      { return k.volume(v) + "made/" }
func (k keys) removed(v replication.VolumeID) string   { return k.volume(v) + "removed/" }
func (k keys) name(name string) string                 { return k.root + "volname/" + name }
func (k keys) groups() string                          { return k.root + "group/" }
func (k keys) group(name string) string                { return k.groups() + name }
func (k keys) groupedVolumes() string                  { return k.root + "volgroup/" }
func (k keys) grouped(v replication.VolumeID) string   { return k.groupedVolumes() + v.String() }
func (k keys) configs() string                         { return k.root + "vol/" }
func (k keys) config(v replication.VolumeID) string    { return k.configs() + v.String() + "/cfg" }
func (k keys) rollback(v replication.VolumeID) string  { return k.configs() + v.String() + "/rollback" }
func (k keys) exposure(v replication.VolumeID) string  { return k.root + "exposure/" + v.String() }
func (k keys) publications() string                    { return k.root + "published/" }
func (k keys) published(v replication.VolumeID) string { return k.publications() + v.String() }
func (k keys) blanks() string                          { return k.root + "blank/" }
func (k keys) blank(v replication.VolumeID) string     { return k.blanks() + v.String() }
func (k keys) verified(v replication.VolumeID) string  { return k.root + "verified/" + v.String() }

// Records of snapshots: each with what its replicas have reported below it, the id by name, and the ids of a volume's.
func (k keys) snapshots() string                         { return k.root + "snapshot/" }
func (k keys) snapshot(s replication.SnapshotID) string  { return k.snapshots() + s.String() }
func (k keys) snapshotName(name string) string           { return k.root + "snapname/" + name }
func (k keys) snapshotsOf(v replication.VolumeID) string { return k.root + "snapof/" + v.String() }

// splitVolume takes a key under volumes apart: the volume's id, and what follows it.
func (k keys) splitVolume(key string) (replication.VolumeID, string, bool) {
	id, rest, ok := strings.Cut(strings.TrimPrefix(key, k.volumes()), "/")
	v, err := replication.ParseVolumeID(id)
	return v, rest, ok && err == nil
}

// specOf is the volume of a key that spec made, the zero value of any other key.
func (k keys) specOf(key string) replication.VolumeID {
	if id, rest, ok := k.splitVolume(key); ok && rest == "spec" {
		return id
	}
	return replication.VolumeID{}
}

// configOf is the volume of a key that config made.
func (k keys) configOf(key string) (replication.VolumeID, bool) {
	return k.beside(key, "/cfg")
}

// rollbackOf is the volume of a key that rollback made.
func (k keys) rollbackOf(key string) (replication.VolumeID, bool) { return k.beside(key, "/rollback") }

func (k keys) beside(key, what string) (replication.VolumeID, bool) {
	id, ok := strings.CutSuffix(strings.TrimPrefix(key, k.configs()), what)
	v, err := replication.ParseVolumeID(id)
	return v, ok && err == nil
}
