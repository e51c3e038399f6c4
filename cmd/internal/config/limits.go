package config

import (
	"strconv"
	"time"
)

// Unit of a Limit.
type Unit string

// Units.
const (
	UnitDuration Unit = "duration" // in ns inside, "500ms" in the file
	UnitRate     Unit = "bytes/s"  // "100Mi" in the file, 0 for no limit
	UnitCount    Unit = "count"
)

// Limit is the range of one key that has a number: the only place where it
// stands. Default, Validate, the sample and the reference use it.
type Limit struct {
	Key               string
	Min, Max, Default int64 // in Unit
	Unit              Unit
	Why               string // reason for the range

	field field
}

// field reads and writes one number of a Config.
type field struct {
	get func(*Config) int64
	set func(*Config, int64)
}

func at[T ~int | ~int64](p func(*Config) *T) field {
	return field{
		get: func(c *Config) int64 { return int64(*p(c)) },
		set: func(c *Config, v int64) { *p(c) = T(v) },
	}
}

const (
	mib = 1 << 20
	gib = 1 << 30
)

var limits = []Limit{
	{
		"frontends.device.patience", 0, int64(7 * 24 * time.Hour), 0, UnitDuration,
		"whoever writes to a device that will not come back hangs for that long; whoever gives up during an upgrade has lost a file system",
		at(func(c *Config) *time.Duration { return &c.Frontends.Device.Patience }),
	},
	{
		"replication.beatInterval", int64(50 * time.Millisecond), int64(5 * time.Second), int64(500 * time.Millisecond), UnitDuration,
		"below, beats cost more than they tell; above, a dead peer is noticed too late",
		at(func(c *Config) *time.Duration { return &c.Replication.BeatInterval }),
	},
	{
		"replication.suspectTimeout", int64(400 * time.Millisecond), int64(60 * time.Second), int64(3 * time.Second), UnitDuration,
		"writes pause this long when a replica dies; too short and a hiccup of the network costs a resync (1.2s is the least to recommend)",
		at(func(c *Config) *time.Duration { return &c.Replication.SuspectTimeout }),
	},
	{
		"replication.opTimeout", int64(time.Second), int64(5 * time.Minute), int64(10 * time.Second), UnitDuration,
		"a disk that hangs must not hold a volume longer than its consumers bear",
		at(func(c *Config) *time.Duration { return &c.Replication.OpTimeout }),
	},
	{
		"replication.evictSlow", 0, int64(time.Second), 0, UnitDuration,
		"0 evicts no replica for being slow, else 20ms at least: what a good disk and a link between sites take now and then is no fault; well above what the slowest good replica takes",
		at(func(c *Config) *time.Duration { return &c.Replication.EvictSlow }),
	},
	{
		"replication.sealTimeout", int64(500 * time.Millisecond), int64(time.Minute), int64(5 * time.Second), UnitDuration,
		"a replica answers a seal after its last I/O has ended and the promise is on disk",
		at(func(c *Config) *time.Duration { return &c.Replication.SealTimeout }),
	},
	{
		"replication.leaseTime", int64(400 * time.Millisecond), int64(time.Minute), int64(2 * time.Second), UnitDuration,
		"reads pause when a replica is silent for so long; below, a hiccup of the network is noticed. To lower both lease times, lower this one on every node first",
		at(func(c *Config) *time.Duration { return &c.Replication.LeaseTime }),
	},
	{
		"replication.leaseGrant", int64(500 * time.Millisecond), int64(time.Minute), int64(3 * time.Second), UnitDuration,
		"a takeover from a coordinator that ended without notice waits this long; if it is not above suspectTimeout a failover takes no longer for it",
		at(func(c *Config) *time.Duration { return &c.Replication.LeaseGrant }),
	},
	{
		"replication.handoverTimeout", int64(time.Second), int64(time.Minute), int64(10 * time.Second), UnitDuration,
		"requests wait for so long, twice at worst, when the other node of a planned move dies in the middle",
		at(func(c *Config) *time.Duration { return &c.Replication.HandoverTimeout }),
	},
	{
		"replication.stallTimeout", int64(5 * time.Second), int64(24 * time.Hour), int64(90 * time.Second), UnitDuration,
		"long enough to fail over by hand without an I/O error, short enough that a hopeless wait ends",
		at(func(c *Config) *time.Duration { return &c.Replication.StallTimeout }),
	},
	{
		"replication.resyncRate", 0, 100 * gib, 0, UnitRate,
		"0 is no limit; a small rate on a busy volume may never catch up",
		at(func(c *Config) *Size { return &c.Replication.ResyncRate }),
	},
	{
		"replication.resyncs", 1, 1024, 4, UnitCount,
		"more at once do not end earlier: they share disks and the way to the other site",
		at(func(c *Config) *int { return &c.Replication.Resyncs }),
	},
	{
		"replication.resyncsPerPool", 1, 1024, 4, UnitCount,
		"a disk that many resyncs write at once serves none of them well",
		at(func(c *Config) *int { return &c.Replication.ResyncsPerPool }),
	},
	{
		"replication.resyncRatePerPool", 0, 100 * gib, 0, UnitRate,
		"0 is no limit; there are no more resyncs at once than leave each a resyncFloor, and one in any case",
		at(func(c *Config) *Size { return &c.Replication.ResyncRatePerPool }),
	},
	{
		"replication.resyncRatePerLink", 0, 100 * gib, 0, UnitRate,
		"0 is no limit; what a site's nodes receive together is so much for each of them",
		at(func(c *Config) *Size { return &c.Replication.ResyncRatePerLink }),
	},
	{
		"replication.resyncFloor", mib, 100 * gib, 16 * mib, UnitRate,
		"a replica that is out of sync is a risk too: 16Mi go through a TiB in 18 hours",
		at(func(c *Config) *Size { return &c.Replication.ResyncFloor }),
	},
	{
		"replication.verifyInterval", 0, int64(365 * 24 * time.Hour), int64(7 * 24 * time.Hour), UnitDuration,
		"what has rotted on one disk is to be found before the other one has failed",
		at(func(c *Config) *time.Duration { return &c.Replication.VerifyInterval }),
	},
	{
		"replication.verifyRate", 0, 100 * gib, 16 * mib, UnitRate,
		"a verify must not be felt: 16Mi go through a TiB in 18 hours",
		at(func(c *Config) *Size { return &c.Replication.VerifyRate }),
	},
	{
		"failover.confirm", int64(time.Second), int64(10 * time.Minute), int64(15 * time.Second), UnitDuration,
		"too short and a hiccup moves a site, too long and everybody waits",
		at(func(c *Config) *time.Duration { return &c.Failover.Confirm }),
	},
	{
		"failover.nodeTTL", int64(2 * time.Second), int64(5 * time.Minute), int64(10 * time.Second), UnitDuration,
		"the kvdb renews registrations at a third of it; an election of its leader must fit in",
		at(func(c *Config) *time.Duration { return &c.Failover.NodeTTL }),
	},
	{
		"failover.quorumLoss", 1, 100, 100, UnitCount,
		"per cent of the nodes of a domain",
		at(func(c *Config) *int { return &c.Failover.QuorumLoss }),
	},
	{
		"failover.minInterval", int64(10 * time.Second), int64(30 * 24 * time.Hour), int64(10 * time.Minute), UnitDuration,
		"a site that comes and goes must not move everything each time",
		at(func(c *Config) *time.Duration { return &c.Failover.MinInterval }),
	},
	{
		"replication.maxInflight", 1, 4096, 256, UnitCount,
		"every request in flight holds its buffer on both ends; of data no more than 64Mi is in flight over NBD, whatever the number",
		at(func(c *Config) *int { return &c.Replication.MaxInflight }),
	},
}

// Limits returns a copy of the table.
func Limits() []Limit {
	return append([]Limit(nil), limits...)
}

// Text shows v, a value of l, as it is written in the file.
func (l *Limit) Text(v int64) string {
	switch l.Unit {
	case UnitDuration:
		return durationText(time.Duration(v))
	case UnitRate:
		return Size(v).String()
	default:
		return strconv.FormatInt(v, 10)
	}
}
