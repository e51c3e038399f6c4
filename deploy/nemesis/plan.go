package nemesis

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Fault is what a cycle breaks. Home is the site where the volume is attached,
// away the other one with a replica; both change places with every takeover and move.
type Fault string

// The faults.
const (
	CutHome    Fault = "cut-home"      // home hears and says nothing
	CutAway    Fault = "cut-away"      // away hears and says nothing
	CutPair    Fault = "cut-pair"      // home and away do not hear each other; the witness hears both
	CutWitness Fault = "cut-witness"   // the witness hears and says nothing
	LoseOut    Fault = "lose-out"      // what home sends to away is lost
	LoseIn     Fault = "lose-in"       // what away sends to home is lost
	MuteHome   Fault = "mute-home"     // what home sends is lost
	DeafHome   Fault = "deaf-home"     // what home should hear is lost
	BlindHome  Fault = "blind-home"    // home is cut off from the kvdb, not from the replica away
	Flap       Fault = "flap"          // home and away hear each other every other 50 ms
	Slow       Fault = "slow"          // everything takes 20 ms longer
	StopHome   Fault = "stop-home"     // SIGSTOP of the daemon, and SIGCONT
	StopAway   Fault = "stop-away"     // the same
	KillHome   Fault = "kill-home"     // SIGKILL of the daemon
	KillAway   Fault = "kill-away"     // the same
	KillBoth   Fault = "kill-both"     // of both
	TornHome   Fault = "torn-home"     // of the daemon at home, while writes are there that cannot get away
	TornBoth   Fault = "torn-both"     // of both, in that state
	StopKVDB   Fault = "stop-kvdb"     // SIGSTOP of one member of the kvdb
	KillKVDB   Fault = "kill-kvdb"     // SIGKILL of one
	KillQuorum Fault = "kill-quorum"   // SIGKILL of two
	LoseMember Fault = "lose-member"   // SIGKILL of one, whose disk is lost; another one takes its place
	RollBack   Fault = "roll-back"     // SIGKILL of all, which come back from a backup that is some cycles old, or empty; then the operator imports
	RollBehind Fault = "roll-behind"   // the same with one of before away was evicted, which calls it in sync
	FullHome   Fault = "full-home"     // no room for the replica at home
	FullAway   Fault = "full-away"     // nor away
	KillClient Fault = "kill-consumer" // SIGKILL of the consumer, with requests in flight
	Usurp      Fault = "usurp"         // nothing is broken, and the operator takes over all the same
	Deactivate Fault = "deactivate"    // the operator takes away out of service by plan, and back
	Move       Fault = "move"          // the operator detaches the volume and attaches it at the other site
)

// How often, percent.
const (
	never  = 0
	half   = 50
	mostly = 75
	always = 100
)

// How long a fault lasts. With a takeover it is twice that: a replaced coordinator must be seen to be silent, too.
const (
	shortest = 100 * time.Millisecond
	longest  = 2 * time.Second
)

// kind is a fault and in how many of its cycles, percent, the volume is taken over while it lasts.
type kind struct {
	fault    Fault
	takeover int
}

// lost are the faults by which home is lost: the arbiters of the other site can do what an operator does otherwise.
var lost = []Fault{CutHome, MuteHome, DeafHome, StopHome, KillHome, TornHome}

// faults are all of them.
var faults = []kind{
	{CutHome, mostly}, {CutAway, never}, {CutPair, half}, {CutWitness, never}, {LoseOut, half}, {LoseIn, half},
	{MuteHome, mostly}, {DeafHome, mostly}, {BlindHome, mostly}, {Flap, never}, {Slow, never}, {StopHome, mostly}, {StopAway, never},
	{KillHome, half}, {KillAway, never}, {KillBoth, never}, {TornHome, half}, {TornBoth, never}, {StopKVDB, never}, {KillKVDB, never}, {KillQuorum, never},
	{LoseMember, never}, {RollBack, half}, {RollBehind, mostly},
	{FullHome, never}, {FullAway, never}, {KillClient, never}, {Usurp, always}, {Deactivate, never}, {Move, never},
}

// Cycle is one fault, from its beginning until the volume is served again.
type Cycle struct {
	Fault    Fault
	Hold     time.Duration // how long it lasts, at least; from the takeover on, if there is one
	Takeover bool          // the operator deactivates home and attaches the volume away, while it lasts
	Arbiter  bool          // the arbiters do that
	Quiet    bool          // with a takeover: the consumer writes nothing while the fault lasts, so that only its reads could tell
	Settle   bool          // afterwards: wait until both replicas are in sync
	Site     int           // which kvdb member
}

func (c Cycle) String() string {
	s := fmt.Sprintf("%-13s for %5v", c.Fault, c.Hold)
	switch {
	case c.Arbiter:
		s += ", a failover"
	case c.Takeover:
		s += ", a takeover"
	}
	if c.Quiet {
		s += " from readers"
	}
	return s
}

// Plan returns the schedule of a seed: every fault once in as many cycles as there are faults, in another order each time; or
// only one of them. So many per cent of the takeovers that arbiters can do are theirs. A longer schedule of the same seed begins with the shorter one.
func Plan(seed uint64, cycles int, only Fault, failover int) ([]Cycle, error) {
	of := slices.Clone(faults)
	if only != "" {
		of = slices.DeleteFunc(of, func(f kind) bool { return f.fault != only })
	}
	if len(of) == 0 {
		return nil, fmt.Errorf("nemesis: no such fault: %q", only)
	}
	rng, arbiters := rand.New(rand.NewPCG(seed, 0)), rand.New(rand.NewPCG(seed, 1))
	var plan []Cycle
	for len(plan) < cycles {
		for _, i := range rng.Perm(len(of)) {
			c := Cycle{
				Fault:    of[i].fault,
				Hold:     (shortest + time.Duration(rng.Int64N(int64(longest-shortest)))).Round(10 * time.Millisecond),
				Takeover: rng.IntN(100) < of[i].takeover,
				Settle:   rng.IntN(100) < mostly,
				Site:     rng.IntN(3),
				Quiet:    rng.IntN(100) < half,
			}
			c.Quiet = c.Quiet && c.Takeover && c.Fault != TornHome && c.Fault != RollBehind
			if c.Takeover {
				c.Hold *= 2
			}
			c.Arbiter = arbiters.IntN(100) < failover && c.Takeover && slices.Contains(lost, c.Fault)
			plan = append(plan, c)
		}
	}
	return plan[:cycles], nil
}
