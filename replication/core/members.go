package core

import (
	"slices"

	"github.com/tandem-storage/tandem/replication"
)

// member is one replica as the coordinator sees it.
type member struct {
	id      replication.ReplicaID
	usable  bool // its cluster domain may hold in-sync replicas
	kept    bool // and is to: it is not being deactivated
	up      bool // its node answers beats
	sess    replication.SessionID
	open    bool
	pending bool               // a Connect is under way
	upAt    int64              // when its session opened
	downAt  int64              // when it was lost
	tryAt   int64              // earliest time of the next attempt to open one
	rest    int64              // it is not resynced before
	boot    replication.BootID // of the current attachment; zero until known
	stable  replication.Seq    // last StableSeq told
	lag     int64              // bytes sent and not acknowledged
	damaged int                // copies that arrived damaged, one after the other
	healed  int64              // sectors that were rewritten because they did not read well
	lease   lease
	gray    grayness

	snapshots bool // its session can carry a snapshot

	failedJoins int // one after the other, up to maxFailedJoins
}

// ids turns a set of indexes into replica ids.
func (c *Coordinator) ids(s mask) []replication.ReplicaID {
	var r []replication.ReplicaID
	for i, m := range c.m {
		if s.has(i) {
			r = append(r, m.id)
		}
	}
	return r
}

// set turns replica ids into a set of indexes.
func (c *Coordinator) set(ids []replication.ReplicaID) mask {
	var s mask
	for i, m := range c.m {
		if slices.Contains(ids, m.id) {
			s |= bit(i)
		}
	}
	return s
}

func (c *Coordinator) all() mask { return bit(len(c.m)) - 1 }

// syncing is the member being resynced, as a set.
func (c *Coordinator) syncing() mask {
	if c.join != nil && c.join.mirrored {
		return bit(c.join.q)
	}
	return 0
}

// prefer is the index of the local replica if it is in s, else the first of s, else -1.
func (c *Coordinator) prefer(s mask) int {
	first := -1
	for i, m := range c.m {
		if !s.has(i) {
			continue
		}
		if m.id == c.o.Local {
			return i
		}
		if first < 0 {
			first = i
		}
	}
	return first
}

// openSet is the set of members with an open session.
func (c *Coordinator) openSet() mask {
	var s mask
	for i, m := range c.m {
		if m.open {
			s |= bit(i)
		}
	}
	return s
}

// reached is the set of members with an open session whose node answers beats.
func (c *Coordinator) reached() mask {
	s := c.openSet()
	for i, m := range c.m {
		if !m.up {
			s &^= bit(i)
		}
	}
	return s
}
