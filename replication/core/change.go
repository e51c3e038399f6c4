package core

import (
	"fmt"

	"github.com/tandem-storage/tandem/replication"
)

// changeKind is what a configuration change is for.
type changeKind uint8

const (
	changeElect     changeKind = iota + 1 // IDLE → RECOVERING
	changeActivate                        // RECOVERING → ACTIVE
	changeEvict                           // a member leaves the in-sync set
	changeRestore                         // an eviction that was called off: survivors forget it
	changeStartSync                       // STALE → SYNCING
	changeStopSync                        // SYNCING → STALE
	changeJoin                            // SYNCING → IN_SYNC
	changeDetach                          // ACTIVE → DETACHED
	changePolicy                          // another protection
	changeHandover                        // ACTIVE → RECOVERING, under another coordinator
	changeResize                          // a larger size
	changeSnapshot                        // none: replicas take a snapshot
)

// changeStep is how far a change has come.
type changeStep uint8

const (
	stepPrepare changeStep = iota // survivors note the missing member
	stepPropose                   // the compare-and-set is to be sent, or sent again
	stepCAS                       // it is on its way
	stepCommit                    // members store the new configuration
	stepQuiesce                   // start of resync: wait until nothing is in flight
	stepDirty                     // fetch the dirty map
	stepTell                      // tell the joiner
	stepConnect                   // open its session
	stepFlush                     // detach, handover: everything stable
	stepSettle                    // handover: everybody knows it
	stepCut                       // snapshot: the replicas take it
)

// change is the one configuration change under way.
type change struct {
	kind  changeKind
	step  changeStep
	q     mask // members that leave or come
	isr   mask // the in-sync set afterwards
	next  *replication.Config
	retry int64 // when to propose again
	until int64 // when to give it up

	unknown bool // next was sent and may be in force, or come into force yet (I10)
	asking  bool // an attempt of it is on its way

	noRoom, cannot mask // resize: members without room to grow, and with a version that does not know how
}

// progress carries the state machine as far as it goes without further input.
func (c *Coordinator) progress() {
	c.lookAtGroup()
	for c.advanceStage() {
	}
	c.driveRound()
	if c.stage == stageServing {
		c.flushIfDue()
	}
	c.lookAtCut()
	c.reconcileReads()
	c.nextHeal()
	c.advanceVerify()
	c.dispatchWaiting()
}

// advanceStage makes one transition, if one is due.
func (c *Coordinator) advanceStage() bool {
	switch c.stage {
	case stageSealing:
		if s, ok := c.sealed(); ok {
			c.prepare(s)
			return true
		}
	case stagePreparing:
		switch {
		case c.round.done():
			c.activate(c.round.got)
			return true
		case c.now >= c.sealUntil && c.round.got != 0:
			c.prepare(c.round.got)
			return true
		case c.now >= c.sealUntil:
			c.seal() // those that were sealed are gone; another one may be back
			return true
		}
	case stageCommitting:
		switch {
		case c.round.done():
			c.serve()
			return true
		case c.now >= c.sealUntil && c.round.got != 0:
			lost := c.isr &^ c.round.got
			c.serve()
			c.holdAcks = true // released by the eviction, which commits to the rest
			for i := range c.m {
				if lost.has(i) {
					c.requestEvict(i, suspected)
				}
			}
			return true
		}
	case stageServing:
		if c.change != nil {
			return c.advanceChange()
		}
		return c.nextChange()
	case stageIdle, stageElecting, stageActivating, stageDetached, stageHandedOver, stageDead:
	}
	return false
}

// nextChange begins the most urgent change, if there is one to begin.
func (c *Coordinator) nextChange() bool {
	if c.holdAcks && c.openSet().covers(c.isr) && c.must() == 0 {
		c.change = &change{kind: changeRestore, isr: c.isr}
		c.commitRound(c.isr, false)
		return true
	}
	if rest, ok := c.evictable(); ok {
		// Who leaves of his own accord acknowledges until it is decided: without the kvdb
		// nothing waits for that.
		c.holdAcks = c.holdAcks || c.must() != 0
		c.change = &change{kind: changeEvict, q: c.isr &^ rest, isr: rest}
		c.prepareRound(rest, c.all()&^rest)
		return true
	}
	if c.policy.wanted != nil {
		return c.beginPolicy()
	}
	if j := c.join; j != nil && j.failed != "" {
		if !j.mirrored && c.cfg.Members[c.m[j.q].id].State != replication.MemberSyncing {
			c.forgetJoin()
			return true
		}
		return c.beginStopSync()
	}
	if c.holdAcks {
		return false // until somebody is evicted or comes back
	}
	if c.groupHoldsAcks() {
		return false // a resync would wait for what is held
	}
	if c.resize != nil && c.wished() == 0 {
		return c.beginResize()
	}
	if c.detachReq && !c.writesStalled() {
		return c.beginDetach()
	}
	if c.handTo != nil {
		return c.beginHandover()
	}
	if c.snap != nil && c.beginSnapshot() {
		return true
	}
	return c.advanceJoin()
}

// advanceChange carries the change under way on.
func (c *Coordinator) advanceChange() bool {
	ch := c.change
	switch ch.kind {
	case changeEvict:
		return c.advanceEvict(ch)
	case changeRestore:
		switch {
		case c.round.done():
			c.endChange()
			c.holdAcks = false
			c.settleAll()
			return true
		case c.must() != 0:
			c.endChange()
			return true
		}
	case changeStartSync:
		return c.advanceStartSync(ch)
	case changeStopSync:
		return c.advanceStopSync(ch)
	case changeJoin:
		return c.advanceFinishJoin(ch)
	case changeDetach:
		return c.advanceDetach(ch)
	case changePolicy:
		return c.advancePolicy(ch)
	case changeHandover:
		return c.advanceHandover(ch)
	case changeResize:
		return c.advanceResize(ch)
	case changeSnapshot:
		return c.advanceSnapshot(ch)
	case changeElect, changeActivate:
	}
	return false
}

func (c *Coordinator) endChange() { c.change, c.round = nil, nil }

// lostOf is the members of s that are to be evicted.
func (c *Coordinator) lostOf(s mask) mask { return c.wished() & s }

func (c *Coordinator) advanceEvict(ch *change) bool {
	switch ch.step {
	case stepPrepare, stepPropose:
		switch {
		case c.lostOf(ch.q) != ch.q && c.openSet().covers(ch.q):
			// Every member that was to leave is back, and nothing was proposed. The others
			// have to forget it.
			c.endChange()
			c.holdAcks = true
			return true
		case c.lostOf(ch.isr) != 0:
			c.endChange() // begin again with a smaller rest
			return true
		case ch.step == stepPrepare && c.round.done():
			ch.step = stepPropose
			return true
		case ch.step == stepPropose && c.now >= ch.retry:
			n := c.next("evict")
			c.setISR(n, ch.isr, c.evictedState)
			ch.next, ch.step = n, stepCAS
			c.propose(n)
		}
	case stepCommit:
		switch {
		case c.round.done():
			c.endChange()
			if c.must() == 0 {
				c.holdAcks = false
			}
			c.settleAll()
			return true
		case c.lostOf(ch.isr) != 0:
			c.endChange()
			return true
		}
	default: // stepCAS: wait for ChangeDone
	}
	return false
}

func (c *Coordinator) evictedState(i int) (replication.MemberState, string) {
	if c.evictWhy[i] == diskFailed {
		return replication.MemberFaulted, diskFailed
	}
	return replication.MemberStale, c.evictReason(i)
}

// ChangeDone brings the outcome of a Change. rev is the revision in force; cfg is
// the configuration in force for ChangeConflict. Once an outcome was unknown, only what
// tells what became of next ends the wait for it: that a later attempt was not sent does not (I10).
func (c *Coordinator) ChangeDone(now int64, out Outcome, cfg *replication.Config, rev uint64) {
	c.now = now
	if c.over() || !c.changeSent {
		return
	}
	ch := c.change
	switch {
	case out == ChangeConflict && cfg.ProposalID == ch.next.ProposalID:
		out = ChangeOK // an attempt of unknown outcome had taken effect
	case out == ChangeNotSent && ch.unknown:
		out = ChangeUnknown
	case out == ChangeGone && (c.stage != stageServing || c.openSet()&c.isr == 0):
		c.die(errGone)
		return
	case out == ChangeGone:
		out = ChangeRolledBack // a volume is deleted when its replicas are, and one is there
	}
	c.changeStall = out.stall()
	if out == ChangeUnknown {
		ch.unknown, ch.asking, ch.retry = true, false, c.now+c.o.RetryInterval
		return
	}
	c.changeSent, ch.unknown = false, false
	switch out {
	case ChangeOK:
		c.rev = rev
		c.cfg = ch.next
		c.changed(ch)
	case ChangeConflict:
		c.conflict(ch, cfg, rev)
	case ChangeNotSent, ChangeRefused, ChangeRolledBack:
		c.notSent(ch, out)
	case ChangeUnknown, ChangeGone:
	}
	c.progress()
}

// changed acts on a configuration that has come into force.
func (c *Coordinator) changed(ch *change) {
	switch ch.kind {
	case changeElect:
		c.change = nil
		c.term = ch.next.Coord.Term
		c.event(Event{Kind: EventElected})
		c.seal()
	case changeActivate:
		c.isr = ch.isr
		c.stage = stageCommitting
		c.sealUntil = c.now + c.o.SealTimeout
		c.change = nil
		c.commitRound(c.isr, false)
		c.askFirstLeases()
	case changeEvict:
		c.isr, c.holdAcks = ch.isr, true
		for i, m := range c.m {
			if ch.q.has(i) {
				c.event(Event{Kind: EventEvicted, Replica: m.id, Reason: c.cfg.Members[m.id].Reason})
				c.dropMember(i)
				c.restFromGray(i)
				if c.evictWhy[i] == groupSplit {
					m.rest = c.now + c.groupRest() // it may be reached all the time, or come and go
				}
			}
		}
		c.evictReq &= c.isr
		ch.step = stepCommit
		c.commitRound(c.isr, false)
	case changeStartSync:
		// Nothing may fall between not mirrored and not marked.
		c.holdRequests(StallResyncStart, false)
		ch.step, ch.until = stepQuiesce, c.now+c.o.SuspectTimeout
	case changeStopSync:
		ch.step = stepCommit
		c.commitRound(c.isr, false)
	case changeJoin:
		c.joined(ch)
	case changeDetach:
		ch.step = stepCommit
		ch.until = c.now + c.o.SealTimeout
		c.commitRound(c.isr, c.flushGood && c.reconcile.Count() == 0)
	case changePolicy:
		c.policyChanged(ch)
	case changeHandover:
		c.handedOver()
	case changeResize:
		c.resized(ch)
	case changeRestore, changeSnapshot:
	}
}

// stall is why a change with this outcome has to be proposed again.
func (o Outcome) stall() Stall {
	switch o {
	case ChangeNotSent, ChangeUnknown:
		return StallKVDB
	case ChangeRefused:
		return StallDomain
	case ChangeRolledBack:
		return StallRollback
	default:
		return StallNone
	}
}

// conflict acts on a lost compare-and-set.
func (c *Coordinator) conflict(ch *change, cfg *replication.Config, rev uint64) {
	switch {
	case c.rolledBack(cfg):
		c.changeStall = StallRollback // until an import brings back what it knows
		c.notSent(ch, ChangeRolledBack)
	case ch.kind == changeHandover && c.succeeded(cfg):
		c.cfg, c.rev = cfg.Clone(), rev
		c.handedOver()
	case c.stage == stageElecting || !c.mine(cfg):
		c.die(c.tooLate(cfg))
	case c.lostTrack(cfg):
		c.die(errLostTrack)
	default:
		// Somebody else may change what is not the coordinator's (a label): take it over and propose again.
		c.cfg, c.rev = cfg.Clone(), rev
		c.notSent(ch, ChangeConflict)
	}
}

// errGone is the end of a coordinator of which nothing is left.
var errGone = fmt.Errorf("%w: it was deleted while it was attached here", replication.ErrVolumeNotFound)

// errLostTrack is the end of a coordinator that acknowledged by another in-sync set than the one in force.
var errLostTrack = fmt.Errorf("%w: an own change of the in-sync set that was believed not sent is in force", replication.ErrDeposed)

// lostTrack reports whether cfg, which names this coordinator, has another in-sync
// set than it knows. Nobody else changes that, so it is an own change of which a
// definite failure was told.
func (c *Coordinator) lostTrack(cfg *replication.Config) bool { return c.set(cfg.ISR) != c.isr }

// notSent brings a change back to where it may be proposed again, or given up.
func (c *Coordinator) notSent(ch *change, out Outcome) {
	if ch.kind == changeElect || ch.kind == changeActivate {
		if err := map[Outcome]error{ChangeRefused: replication.ErrDomainFenced, ChangeRolledBack: replication.ErrRolledBack}[out]; err != nil {
			c.die(err)
			return
		}
	}
	ch.retry = c.now + c.o.RetryInterval
	switch ch.kind {
	case changeElect, changeActivate, changeEvict, changeJoin, changeDetach, changeStopSync:
		ch.step = stepPropose
	case changeStartSync:
		c.abandonStartSync(out.String())
	case changePolicy:
		c.endChange()
		c.endPolicy(fmt.Errorf("%w: %s", ErrNotChanged, out))
	case changeHandover:
		c.keep(fmt.Errorf("%w: %s", errNotHandedOver, out))
	case changeResize:
		if ch.step = stepPropose; out != ChangeConflict {
			c.endChange()
			c.endResize(fmt.Errorf("%w: %s", ErrNotChanged, out))
		}
	case changeRestore, changeSnapshot:
	}
}

// proposeAgain sends what is due again: a takeover's change anew, and any change of unknown
// outcome as it was, for it can take effect only once.
func (c *Coordinator) proposeAgain() {
	ch := c.change
	switch {
	case ch == nil || c.now < ch.retry:
	case ch.unknown && !ch.asking:
		ch.asking = true
		c.propose(ch.next)
	case ch.step != stepPropose || c.changeSent:
	case ch.kind == changeElect:
		c.elect()
	case ch.kind == changeActivate:
		c.activate(ch.isr)
	}
}

// dropMember forgets the session of a member that left the in-sync set.
func (c *Coordinator) dropMember(i int) {
	m := c.m[i]
	if m.open || m.pending {
		c.ready.Disconnect = append(c.ready.Disconnect, Session{To: i, ID: m.sess})
	}
	c.sessionLost(i)
	m.boot = replication.BootID{}
	c.joinAt = c.now + c.o.RetryInterval
	if c.isr&(c.isr-1) == 0 {
		c.reconcile.Reset() // one copy: nothing to differ from
	}
	c.cursor = 0 // the sweep goes on with another authority
}
