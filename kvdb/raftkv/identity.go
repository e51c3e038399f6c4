package raftkv

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// identity is who the member in a data directory is, in Dir/member.json; the
// marker file has the same content.
type identity struct {
	Format    int           `json:"format"`
	ClusterID string        `json:"cluster_id"`
	MemberID  string        `json:"member_id"`
	Node      string        `json:"node"`
	State     identityState `json:"state"`
}

type identityState string

const (
	stateForming identityState = "forming" // begins a new cluster; may not have a log yet
	stateJoining identityState = "joining" // to be added by the members; may not have a log yet
	stateMember  identityState = "member"  // must have a log
)

const identityFormat = 1

// newIdentity returns one for a new data directory.
func newIdentity(node, clusterID string, state identityState) identity {
	return identity{
		Format:    identityFormat,
		ClusterID: clusterID,
		MemberID:  node + "-" + randomHex(8),
		Node:      node,
		State:     state,
	}
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // documented never to fail
	return hex.EncodeToString(b)
}

// readIdentity returns os.ErrNotExist if there is none.
func readIdentity(path string) (identity, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return identity{}, err
	}
	var id identity
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&id); err != nil {
		return identity{}, fmt.Errorf("raftkv: %s is damaged: %w", path, err)
	}
	if id.Format != identityFormat {
		return identity{}, fmt.Errorf("raftkv: %s has format %d, this version knows %d", path, id.Format, identityFormat)
	}
	return id, nil
}

// writeIdentity replaces the file; on return the new content is on stable storage.
func writeIdentity(path string, id identity) (err error) {
	raw, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(raw, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
