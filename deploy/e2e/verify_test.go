package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// flip inverts the bytes of a 4 KiB block of a volume in the chunk file of one replica, behind the daemon's back.
func (c *cluster) flip(t *testing.T, v vol, node string, off int64) {
	t.Helper()
	id := strings.ReplaceAll(c.inspect(t, v.home, v.name).Volume.ID, "-", "")
	files, err := filepath.Glob(filepath.Join(c.Node(node).Pool(), "replicas", id+".*", "head", "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("chunk files on %s: %v, %v", node, files, err)
	}
	f, err := os.OpenFile(files[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	_, err = f.ReadAt(p, off)
	for i := range p {
		p[i] = ^p[i]
	}
	if err == nil {
		_, err = f.WriteAt(p, off)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// verifyView is what `volume verify status` tells.
type verifyView struct {
	Volume struct {
		Verify struct {
			Running bool  `json:"running"`
			Last    int64 `json:"last_unix_ms,string"`
			Found   struct {
				Equal   bool   `json:"equal"`
				Differs int    `json:"differs_blocks,string"`
				Bytes   string `json:"bytes"`
				Sides   []struct {
					Node   string `json:"node"`
					Digest string `json:"digest"`
				} `json:"sides"`
			} `json:"last"`
		} `json:"verify"`
		Damage struct {
			Lost    []string `json:"lost_offsets"`
			Differs []string `json:"differs_offsets"`
		} `json:"damage"`
		Replicas []struct {
			Node   string `json:"node"`
			Healed int64  `json:"healed_blocks,string"`
		} `json:"replicas"`
	} `json:"volume"`
}

func (c *cluster) verifyStatus(t *testing.T, v vol) (s verifyView) {
	t.Helper()
	out := c.ctl(t, v.home, "volume", "verify", "status", v.name, "-o", "json")
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("verify status printed %q: %v", out, err)
	}
	return s
}

func (s *verifyView) healed(node string) int64 {
	for _, r := range s.Volume.Replicas {
		if r.Node == node {
			return r.Healed
		}
	}
	return -1
}

// verify goes through a volume and returns what was found.
func (c *cluster) verify(t *testing.T, v vol) (s verifyView) {
	t.Helper()
	m := c.mark(t, v.home)
	c.ctl(t, v.home, "volume", "verify", "start", v.name, "--rate", "0")
	m.await(t, "verify complete", time.Minute)
	until(t, "the verify is over", 10*time.Second, func() (bool, error) {
		s = c.verifyStatus(t, v)
		return !s.Volume.Verify.Running && s.Volume.Verify.Last != 0, nil
	})
	return s
}

// TestVerify damages blocks on the disk of one replica of a volume that is in use: what a reader finds and what a verify
// finds is rewritten from the other one. Where both vouch for different data nobody picks: the block is named, and not read.
func TestVerify(t *testing.T) {
	need(t, "qemu-io")
	c := shared(t)
	v := c.create(t, "verified", "64Mi")
	do, end := returning(t, c.attach(t, v.home, v.name))
	must := func(command, want string) {
		t.Helper()
		if said := do(command); !strings.Contains(said, want) || want != "failed" && !succeeded(said) {
			t.Fatalf("%s: %q", command, said)
		}
	}
	must("write -P 0x55 1M 64k", "wrote")
	must("write -P 0x66 8M 64k", "wrote")
	const found, unread, never = 1<<20 + 4096, 8<<20 + 8192, 20 << 20

	chapters(t, chapter{"what a reader finds is healed", func(t *testing.T) {
		m := c.mark(t, v.home)
		c.flip(t, v, v.home, found)
		must("read -P 0x55 1M 64k", "read")
		if e := m.await(t, "damaged blocks rewritten from another replica", 20*time.Second); e.Blocks != 1 {
			t.Errorf("healed: %s", e.raw)
		}
		c.identical(t, v.name)
	}}, chapter{"what a verify finds is healed", func(t *testing.T) {
		c.flip(t, v, v.away, unread)
		s := c.verify(t, v)
		if s.healed(v.home) != 1 || s.healed(v.away) != 1 || len(s.Volume.Damage.Lost)+len(s.Volume.Damage.Differs) != 0 {
			t.Errorf("after the verify: %+v", s)
		}
		c.identical(t, v.name)
		if f := s.Volume.Verify.Found; !f.Equal || len(f.Sides) != 2 || f.Bytes != "67108864" || len(f.Sides[0].Digest) != 64 {
			t.Errorf("the verify found %+v", f)
		}
		must("read -P 0x66 8M 64k", "read")
	}}, chapter{"what differs is not picked from", func(t *testing.T) {
		m := c.mark(t, v.home)
		c.flip(t, v, v.away, never) // it was never written, so that it has no checksum
		s := c.verify(t, v)
		if !slices.Equal(s.Volume.Damage.Differs, []string{"20971520"}) || len(s.Volume.Damage.Lost) != 0 || s.healed(v.away) != 1 {
			t.Errorf("after the verify: %+v", s)
		}
		if f := s.Volume.Verify.Found; f.Equal || f.Differs != 1 || len(f.Sides) != 2 || f.Sides[0].Digest == f.Sides[1].Digest {
			t.Errorf("the verify found %+v", f)
		}
		if len(m.since(t, "in-sync replicas differ and each vouches for its data, reads of the blocks fail until they are written")) != 1 {
			t.Error("the log does not say it")
		}
		if out := c.ctl(t, v.home, "volume", "inspect", v.name); !strings.Contains(out, "ALARM: DIFFERS") || !strings.Contains(out, "20971520") {
			t.Errorf("volume inspect: %s", out)
		}
		must("read 20M 4k", "failed")
		must("read -P 0 20484k 4k", "read")
		must("write -P 0x77 20M 4k", "wrote")
		must("read -P 0x77 20M 4k", "read")
		if s := c.verify(t, v); len(s.Volume.Damage.Differs) != 0 || !s.Volume.Verify.Found.Equal {
			t.Errorf("after it was written: %+v", s)
		}
	}}, chapter{"elsewhere and detached", func(t *testing.T) {
		c.refused(t, v.away, 4, []string{v.home}, "volume", "verify", "status", v.name)
		end()
		c.detach(t, v.home, v.name)
		c.refused(t, v.home, 4, []string{"not attached"}, "volume", "verify", "start", v.name)
		c.identical(t, v.name)
	}})
}
