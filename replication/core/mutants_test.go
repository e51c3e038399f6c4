//go:build mutants

package core

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var (
	mutantSeeds = flag.Int("mutant.seeds", 1500, "seeds for a mutant that no directed test catches; the default is the simulator's")
	mutantKnown = flag.Int("mutant.known", 300, "seeds for one that is caught already, to see whether the simulator does too")
	mutantOnly  = flag.String("mutant.only", "", "run only the mutants that match this regular expression")
)

// mutant is the package with one rule taken out of it.
type mutant struct {
	name, rule string
	file       string
	old, new   string
}

var mutants = []mutant{
	{"no_fence", "I6: the promise of a term", "replicacontrol.go", "case q.Term < r.meta.Term:\n\t\treturn replication.StatusFenced", "case false:\n\t\treturn replication.StatusFenced"},
	{"position_of_others", "receipt: a position is of a term that this process has seen whole", "replicaio.go", "if r.meta.Term != r.began {", "if false {"},
	{"position_in_flight", "receipt: what was confirmed is not above the position", "replicaio.go", "r.applied.Seq = max(r.applied.Seq, seq)", "r.applied.Seq = seq"},
	{"no_session_fence", "I6: messages of another session", "replicaio.go", "if conn != r.conn || msg.Session != r.session {", "if false {"},
	{"hello_old_term", "I6: no session of an older term", "replicacontrol.go", "case t.msg.Term < r.meta.Term:", "case false:"},
	{"best_copy", "I4: a takeover starts from the in-sync set", "takeover.go", "c.isr = c.set(n.ISR)", "c.isr = c.all()"},
	{"label_before_data", "I18: in sync after the data, not before", "join.go", "n.Members[c.m[j.q].id] = v\n\t\tc.setISR(n, c.isr,", "n.Members[c.m[j.q].id] = v\n\t\tc.setISR(n, c.isr|bit(j.q),"},
	{"start_not_held", "9.1 step 3: mirrored or marked", "change.go", "c.holdRequests(StallResyncStart, false)", "c.dropWaitingCopies()"},
	{"join_ends_all_maps", "I14: a join ends the map of who has joined", "replicacontrol.go", "if !cfg.InISR(id) {", "if !cfg.InISR(id) && len(cfg.ISR) < 2 {"},
	{"clean_without_flush", "I13: settled is what was flushed", "dispatch.go", "case io.Kind == replication.MsgFlush:\n\t\tc.flushDone(io)", "case io.Kind == replication.MsgFlush || c.flight.minWrite() == 0:\n\t\tio.cover = max(io.cover, io.seq-1)\n\t\tc.flushDone(io)"},
	{"hole_not_copied", "9.1: zeroes are content", "compare.go", "case p.zero:\n\t\tfor i := range c.m {", "case p.zero:\n\t\tfor i := range c.m[:0] {"},
	{"trim_skips_joiner", "I27: a discard is a write to a joiner too", "dispatch.go", "io.targets = c.isr | c.syncing()\n", "io.targets = c.isr | c.syncing()\n\tif io.Kind == replication.MsgTrim {\n\t\tio.targets = c.isr\n\t}\n"},
	{"refusal_keeps_credit", "14.2: a refusal gives the room of its payload back", "replicaio.go", "Seq: msg.Seq, Credit: uint32(payload),", "Seq: msg.Seq, Credit: 0 * uint32(payload),"},
	{"no_drain", "I17: seal and hello wait for the kernel", "replica.go", "if r.inUse > 0 {\n\t\t\t\treturn", "if false {\n\t\t\t\treturn"},
	{"ack_before_cas", "I9: acknowledgements are held", "change.go", "c.holdAcks = c.holdAcks || c.must() != 0", "c.isr = rest"},
	{"no_prepare", "I9: survivors are prepared", "change.go", "case ch.step == stepPrepare && c.round.done():", "case ch.step == stepPrepare:"},
	{"no_reconcile", "I16: D after a takeover", "takeover.go", "c.markActive(c.reconcile, c.seals[i])", "_ = i"},
	{"read_unreconciled", "I16: a read waits for D", "dispatch.go", "!c.readable() || c.unreconciled(io.Off, io.Len) {", "!c.readable() {"},
	{"unknown_not_sent", "I10: an attempt that was not sent says nothing of the one before", "change.go", "case out == ChangeNotSent && ch.unknown:", "case false:"},
	{"join_adopted", "I10: an own change that was believed not sent", "change.go", "return c.set(cfg.ISR) != c.isr", "return false"},
	{"own_change_conflicts", "I10: a change that had taken effect", "change.go", "case out == ChangeConflict && cfg.ProposalID == ch.next.ProposalID:", "case false:"},
	{"start_held", "G6: no write waits for the kvdb when a resync starts", "join.go", "c.change = &change{kind: changeStartSync,", "c.holdRequests(StallResyncStart, false); c.change = &change{kind: changeStartSync, until: 1 << 62,"},
	{"read_while_joining", "I10: a read needs the joiner too", "lease.go", "\t\ts |= c.change.q\n", ""},
	{"read_without_lease", "I8: a read needs leases", "lease.go", "(!m.open || c.now >= m.lease.until)", "!m.open"},
	{"read_with_one_lease", "I8: of every in-sync member", "lease.go", "if s.has(i) && (!m.open", "if i == c.prefer(s) && (!m.open"},
	{"lease_from_grant", "I8: the coordinator counts from before it asked", "lease.go", "l.until = false, l.asked+min(", "l.until = false, c.now+min("},
	{"lease_own_term", "I8: no longer than the replica keeps it", "lease.go", "min(c.o.LeaseTime, kept-kept/ClockError)", "max(c.o.LeaseTime, 0*kept)"},
	{"lease_rest_reads", "I8: a read after a rest waits for leases", "lease.go", "if s.has(i) && (!m.open || c.now >= m.lease.until) {", "if s.has(i) && (!m.open || c.now >= m.lease.until && c.now-c.servedAt < 1e9) {"},
	{"lease_no_drift", "I8: clocks differ", "lease.go", "kept-kept/ClockError", "kept"},
	{"lease_kept", "5.6: a lease ends with its session", "session.go", "\tm.lease = lease{}\n", ""},
	{"lease_old_grant", "5.6: a grant answers one request", "lease.go", "if !l.asking || msg.Offset != l.asked {", "if msg.Offset != l.asked && false {"},
	{"lease_unanswered", "G7: who grants nothing is evicted", "session.go", "if m.lease.asking {", "if false {"},
	{"joiner_lease_late", "5.6: a joiner has granted before it joins", "lease.go", "want := c.isr | c.syncing()", "want := c.isr"},
	{"confirm_ignored", "I8: a read is confirmed", "lease.go", "if s.has(i) && m.lease.confirmed < io.number {", "if s.has(i) && m == nil {"},
	{"confirm_by_one", "I8: by every in-sync member", "lease.go", "if s.has(i) && m.lease.confirmed < io.number {", "if i == c.prefer(s) && m.lease.confirmed < io.number {"},
	{"confirm_old", "I8: only what was sent before the request is confirmed", "lease.go", "l.asking, l.confirmed, l.until = false, l.covers,", "l.asking, l.confirmed, l.until = false, c.reads,"},
	{"confirm_leases", "5.6: a confirmation promises nothing", "lease.go", "if msg.Length > 0 {", "if true {"},
	{"seal_at_once", "I8: a seal waits for the lease", "replica.go", "if t.seal != nil && r.leasedTo(t.seal) {", "if false {"},
	{"seal_never_woken", "G7: a seal goes on when the lease has run out", "replica.go", "r.ready.Wake = r.leased\n", ""},
	{"seal_grants_on", "I8: no grant once another term is asked for", "replica.go", "\t\t\tr.CloseSessions()\n\t\t\tif r.inUse", "\t\t\tif r.inUse"},
	{"no_quarantine", "I8: a grant outlives the process", "lease.go", "if r.meta.Term != 0 {", "if false {"},
	{"quarantine_new", "5.6: who never granted does not wait", "lease.go", "if r.meta.Term != 0 {", "if true {"},
	{"grant_short", "I8: a replica keeps its promise", "lease.go", "r.leased = r.now + keep", "r.leased = r.now + keep/2"},
	{"release_ignored", "5.4: after a detach no lease is waited for", "lease.go", "r.now < r.leased && !ended", "r.now < r.leased && (true || ended)"},
	{"release_of_others", "I8: only who has ended is not waited for", "lease.go", "q.Ended >= r.meta.Term &&", "q.Ended != 0 &&"},
	{"release_by_others", "I8: only its own node knows that a process has ended", "lease.go", "old.Node == c.o.Node && ", ""},
	{"release_by_boot", "I8: another boot may be another machine", "lease.go", "old.Boot == c.o.Boot && ", ""},
	{"release_unserved", "I8: who did not come to serve waited for nobody", "lease.go", "cfg.Phase == replication.PhaseActive && ", ""},
	{"read_after_detach", "5.4: who detaches reads no more", "detach.go", "c.ended = true //", "//"},
	{"read_not_checked_again", "I8: a read is checked when it is done", "dispatch.go", "case c.confirmed(io):", "case true:"},
	{"handover_unflushed", "10.2: what is handed over is stable", "handover.go", "ch.step = stepFlush\n\t\t\tc.flushNow()", "ch.step, c.flushGood = stepFlush, true"},
	{"handover_unsettled", "10.2: activity logs are clean, and it is known", "handover.go", "ch.step = stepSettle\n\t\t\tc.flushNow()", "ch.step = stepSettle"},
	{"handover_flush_failed", "10.2: and a flush that failed is none", "handover.go", "case !c.flushGood:", "case false:"},
	{"handover_undrained", "10.2: nothing is in flight", "hold.go", "return c.quiet() && !c.copying() && !(c.hold.reads && len(c.flight.ios) > 0)", "return c.quiet() && !c.copying()"},
	{"handover_reads_on", "I8: who hands over reads no more", "handover.go", "c.holdRequests(StallHandover, true)", "c.holdRequests(StallHandover, false)"},
	{"handover_unheld", "10.2: what comes meanwhile waits", "handover.go", "c.holdRequests(StallHandover, true)", "c.dropWaitingCopies()"},
	{"handover_unreconciled", "10.2: the other one finds replicas that are equal", "handover.go", "case c.reconcile.Count() > 0:", "case false:"},
	{"handover_anywhere", "10.2: to where an in-sync replica is", "handover.go", "return c.cfg.Members[r].Node == c.handTo.Node", "return true"},
	{"handover_with_lost", "10.2: not with a member lost", "handover.go", "ch.step != stepCAS && c.wished() != 0", "false"},
	{"handover_forgets", "10.2: what was held is given back", "handover.go", "c.ready.Returned = append(c.ready.Returned, io)", "_ = io"},
	{"handover_then_deposed", "10.2: its own handover, of which it was not told", "coordinator.go", "case c.changeSent && c.succeeded(cfg):", "case false:"},
	{"handover_conflicts", "10.2: the same in a conflict", "change.go", "case ch.kind == changeHandover && c.succeeded(cfg):", "case false:"},
	{"handover_kept_late", "I10: what is proposed is not called off", "handover.go", "!c.over() && !c.handing() {", "!c.over() {"},
	{"handover_then_fenced", "10.2: the other one's promise, before the kvdb tells", "handover.go", "if c.handing() {", "if false {"},
	{"early_other_boot", "I19: a session of another boot is not that of the seal", "session.go", "r == nil || r.Boot != ack.Boot {", "r == nil {"},
	{"early_kept", "5.1: who is sealed anew is connected to anew", "takeover.go", "c.keepSessions(0) //", "//"},
	{"early_stranger", "5.1: no session with who did not come along", "takeover.go", "c.keepSessions(s)", "_ = s"},
	{"early_lease", "5.6: no lease before the activation", "session.go", "c.stage == stageCommitting && c.isr.has(i) && m.open", "c.isr.has(i) && m.open"},
	{"early_deaf", "5.6: a grant is heard before the commit has ended", "session.go", "(c.stage != stageCommitting || msg.Type != replication.MsgGrant)", "true"},
	{"early_never", "5.1: sessions are opened while the takeover goes on", "takeover.go", "c.connect(i) // it has promised", "_ = i // it has promised"},
	{"succeed_unnamed", "10.2: only who was named goes on with the term", "handover.go", " && co.AttachID == c.o.Attach", ""},
	{"succeed_served", "10.2: a term that has served is not begun again", "handover.go", "return c.cfg.Phase == replication.PhaseRecovering && co", "return co != nil && co"},
	{"limbo_waits", "10.2: nobody reads in a volume that is handed over", "lease.go", "case cfg.Phase == replication.PhaseRecovering && old.From.Term != 0:", "case false:"},
	{"limbo_for_ever", "I8: who was handed over to reads", "lease.go", "case cfg.Phase == replication.PhaseRecovering && old.From.Term != 0:", "case old.From.Term != 0:"},
	{"taken_back_late", "10.2: not from a configuration that came later", "coordinator.go", "case c.o.TakeBack && !c.limbo():", "case false:"},
	{"taken_back_anyway", "10.2: not when the other one has been activated", "change.go", "case c.stage == stageElecting || !c.mine(cfg):", "case c.stage != stageElecting && !c.mine(cfg):"},
	{"no_dirty_snapshot", "I14: a map begins with the log", "replicacontrol.go", "\t\tr.markActive(m)\n\t}\n\treturn true", "\t}\n\treturn true"},
	{"prepare_ends_map", "I14: requests that were overtaken", "replicacontrol.go", "missing := slices.Clone(r.meta.Missing)", "missing := []replication.ReplicaID(nil)"},
	{"map_outlives_sync", "I14: a map from before a resync", "replicacontrol.go", "\t\tr.setMissing(nil) //", "\t\t//"},
	{"missing_as_delta", "I14: a takeover names every missing member", "takeover.go", "c.prepareRound(s, c.all()&^s)", "c.prepareRound(s, c.isr&^s)"},
	{"ignore_peer_al", "9.1: the joiner's own log", "join.go", "c.markActive(j.todo, j.seal)", "_ = j"},
	{"no_wait_mode", "I18: acknowledgements wait for the joiner", "dispatch.go", "(j.wait || c.m[j.q].lag > c.o.JoinerLag)", "c.m[j.q].lag > 1<<40"},
	{"join_without_flush", "I18: the joiner flushes", "join.go", "if j.flushed && c.wished() == 0 {", "if c.wished() == 0 {"},
	{"flush_skips_joiner", "I18: flushes wait for the joiner", "dispatch.go", "if c.holdAcks || !io.acked.covers(c.need()) {", "if c.holdAcks || !io.acked.covers(c.need()) && !(io.Kind == replication.MsgFlush && io.acked.covers(c.isr)) {"},
	{"resync_unordered", "I15: a copy locks its range", "dispatch.go", "\tcase io.copy != nil:\n\t\tif c.holding() {\n\t\t\treturn false\n\t\t}", "\tcase io.copy != nil:\n\t\treturn !c.holding()"},
	{"early_clean", "I13: only what a flush covered is settled", "dispatch.go", "io.cover = w - 1", "io.cover = io.seq"},
	{"clean_while_unreconciled", "I13: D is empty", "dispatch.go", "if c.reconcile.Count() == 0 && io.failed|io.full == 0 &&", "if io.failed|io.full == 0 &&"},
	{"reopen_lossy", "I19: a member that lost power", "session.go", "if m.boot != (replication.BootID{}) && m.boot != ack.Boot {", "if false {"},
	{"flush_local_only", "I5: a flush on every member", "dispatch.go", "if c.holdAcks || !io.acked.covers(c.need()) {", "if c.holdAcks || !io.acked.covers(c.need()) && !(io.Kind == replication.MsgFlush && io.acked&c.isr != 0) {"},
	{"ack_any", "I3: a write on every member", "dispatch.go", "if c.holdAcks || !io.acked.covers(c.need()) {", "if c.holdAcks || io.acked&c.isr == 0 {"},
	{"lossy_after_join", "I19: a joiner has everything", "replicacontrol.go", "(self.State == replication.MemberInSync || self.State == replication.MemberSyncing) {\n\t\t// What", "false {\n\t\t// What"},
	{"lossy_any_boot", "I19: what was lost since is not given up", "replicacontrol.go", "if q.Boot == r.o.Boot && q.Boot != (replication.BootID{}) && (self", "if (self"},
	{"keep_lossy_in_isr", "I19: takeover drops the lossy", "takeover.go", "case solid != 0:\n", "case false:\n"},
	{"prepare_for_ever", "liveness: who was sealed fails before it is prepared", "change.go", "case c.now >= c.sealUntil:\n\t\t\tc.seal()", "case false:\n\t\t\tc.seal()"},
	{"resume_lossy", "I19: a consumer that lives, and what it was told", "takeover.go", "case c.o.Resume:", "case false:"},
	{"read_stale_source", "I20: who is not in sync is not read", "dispatch.go", "io.from = c.prefer(c.isr & c.openSet() &^ io.failed)", "io.from = c.prefer(c.openSet() &^ io.failed)"},
	{"refusal_of_before", "I15: what was sent again is under way", "session.go", "\t\tio.full &^= bit(i)\n\t\tio.failed &^= bit(i)\n", ""},
	{"overlap", "I15: overlapping writes", "io.go", "if s < b && a < t.end[i] && (io.exclusive() || t.ios[i].exclusive()) {", "if s < b && a < t.end[i] && (io.copy != nil || t.ios[i].copy != nil) {"},
	{"mark_at_dispatch", "I14: marked when applied", "activity.go", "\tfor _, m := range r.maps {\n\t\tm.SetRange", "\tfor _, m := range r.maps[:0] {\n\t\tm.SetRange"},
	{"no_log", "I11: the log before the write", "activity.go", "if x.state == regionOut && fits {", "if false {"},
	{"write_before_logged", "I11: the log durable before the write", "activity.go", "\tif wait {\n\t\tr.held", "\tif r.askLog(); false {\n\t\tr.held"},
	{"lost_before_stored", "I11: without the log only when that is durable", "activity.go", "wait = wait || !r.lostStored", "_ = wait"},
	{"retire_unsettled", "I13: only settled regions leave", "activity.go", "|| !r.settled(g) || !r.saved(g) {", "|| !r.saved(g) {"},
	{"retire_unsaved", "I14: dirty maps are durable first", "activity.go", "|| !r.settled(g) || !r.saved(g) {", "|| !r.settled(g) {"},
	{"tell_again_early", "I12: a log that overflowed", "activity.go", "if r.logLost && r.stable > 0 && r.stable >= r.lostTo && r.meta", "if r.logLost && r.meta"},
	{"tell_again_unsaved", "I14: the same with its dirty maps", "activity.go", "&& r.allSaved() {", "{"},
	{"joiner_forgets_old", "9.1: the joiner's own log lives until it has joined", "activity.go", "if r.meta.State == replication.MemberInSync {\n\t\tr.settleOld", "if true {\n\t\tr.settleOld"},
	{"joiner_map_from_log", "I14: a map that a joiner begins", "replicacontrol.go", "|| r.meta.State != replication.MemberInSync {\n\t\t\tr.dirty", "{\n\t\t\tr.dirty"},
	{"takeover_one_log", "8: D is the union of the logs", "takeover.go", "if !c.isr.has(i) {\n\t\t\t\tcontinue", "if i != c.prefer(c.isr) {\n\t\t\t\tcontinue"},
	{"term_forgets_log", "I12: the log outlives the term", "activity.go", "r.regions[g].old = !r.settled(g)", "r.regions[g].old = false"},
	{"log_error_survived", "I25: a log that cannot be written", "activity.go", "\tif err != nil {\n\t\tr.logFailed(err)\n\t\treturn\n\t}\n", ""},
	{"room_passed", "7: who waits for room is not passed", "activity.go", "if len(r.parked) > 0 || !r.enter(io) {", "if !r.enter(io) {"},
	{"no_room_made", "7: a flush makes room", "dispatch.go", "|| c.touched >= c.o.FlushRegions) &&", ") &&"},
	{"never_retired", "7: what is settled leaves at rest", "activity.go", "\tr.retire(0, 1, 0)\n\tif r.unstored {", "\tif r.unstored {"},
	{"fua_not_checked", "I5: FUA is stable on every member", "copy.go", "return replication.FlagFUA", "return 0"},
	{"evict_all", "I2: somebody stays", "evict.go", "if all && s == least ||", "if all && false ||"},
	{"fault_forgotten", "I25: success after an error", "replicaio.go", "if r.faulted && err == nil {", "if r.faulted && !modifies && err == nil {"},
	{"fault_read", "I25: what is read after an error", "replicaio.go", "if r.faulted && err == nil {", "if r.faulted && modifies && err == nil {"},
	{"flush_error_survived", "I25: a failed flush ends the replica", "replicaio.go", "if modifies && !r.faulted {", "if modifies && !r.faulted && io.Kind != replication.MsgFlush {"},
	{"map_dropped_while_syncing", "I14: the map lives until the join", "replicacontrol.go", "if !cfg.InISR(id) {", "if !cfg.InISR(id) && cfg.Members[id].State != replication.MemberSyncing {"},
	{"commit_map_empty", "I14: who left unseen is marked in full", "replicacontrol.go", "r.dirty[id].SetAll() // it left", "_ = id // it left"},
	{"restored_log_retired", "I12: a log of before", "activity.go", "if r.stable == 0 || r.stable < r.lostTo {", "if r.stable == 0 {"},
	{"map_of_stranger", "I21: who was never in sync", "join.go", "if s.Epoch == 0 {", "if false {"},
	{"detach_unsettled", "5.4: settled only after the flush", "change.go", "c.commitRound(c.isr, c.flushGood && c.reconcile.Count() == 0)", "c.commitRound(c.isr, true)"},
	{"quiet_forgets_flush", "9.1 step 3: nothing in flight", "dispatch.go", "if io.exclusive() {\n\t\t\treturn false", "if io.exclusive() && !io.internal {\n\t\t\treturn false"},
	{"zeroes_run", "9.1: zeroes are only where zeroes are", "copy.go", "for end < r.n && zeroes(msg.Data, end) == zero {", "for end < r.n {"},
	{"direct_dropped", "9.1: what is not compared is copied", "copy.go", "n: min(copyMost, j.io.Len-off), dst: j.dst})", "n: min(copyMost, j.io.Len-off), dst: 0})"},
	{"failed_join_in_sync", "I16: what failed while the join was open", "join.go", "c.reconcile.SetAll()\n", ""},
	{"joining_read", "I10: a joiner that may be in sync may differ", "dispatch.go", "&& !c.joining() ||", "||"},
	{"joining_reconciled", "I10: nothing is decided without it", "copy.go", "c.holdAcks || c.joining() ||", "c.holdAcks ||"},
	{"differ_forgotten", "6.2: a write that failed everywhere", "dispatch.go", "c.differ(io)\n\t\t\tc.complete", "c.complete"},
	{"protection_ignored", "max_protection", "dispatch.go", "held := !io.delivered && !io.internal && c.protectionStall()", "held := false"},
	{"no_space_waits", "F20: no space anywhere", "session.go", "\tif c.evictReq&c.isr != 0 {\n\t\tc.settleAll()", "\tif false {\n\t\tc.settleAll()"},
	{"held_detach", "liveness: nothing begins while acks are held", "change.go", "if c.holdAcks {\n\t\treturn false // until", "if false {\n\t\treturn false // until"},
	{"slow_for_ever", "liveness: who answers again stays", "session.go", "c.pardon(i, slow)", "_ = i"},
	{"own_detach_deposes", "liveness: its own change seen early", "coordinator.go", "if c.changeSent && c.change != nil && cfg.ProposalID == c.change.next.ProposalID {", "if false {"},
	{"copy_never_late", "liveness: a copy that hangs", "session.go", "late |= c.lateOf(bit(r.to), r.sent)", "_ = r"},
	{"no_resend", "14.2: what was not acknowledged is sent again", "session.go", "\tc.resend(i)\n", ""},
	{"age_from_propose", "liveness: nobody is slow for what was not sent", "session.go", "c.lateOf(io.targets&^io.acked&open, io.sent)", "c.lateOf(io.targets&^io.acked&open, io.born)"},
	{"read_age_from_propose", "liveness: the same for reads", "session.go", "c.lateOf(bit(io.from), io.sent)", "c.lateOf(bit(io.from), io.born)"},
	{"pardon_one", "F20: no space on different members", "session.go", "for i := range c.m {\n\t\t\t\tc.pardon(i, noSpace)", "for i := range c.m[:1] {\n\t\t\t\tc.pardon(i, noSpace)"},
	{"stalled_not_failed", "6.2: a write that stalled before it failed everywhere", "dispatch.go", "& c.isr; bad != 0 {", "& c.isr; bad != 0 && !io.delivered {"},
	{"poison_alone", "I19: the last members lost power", "evict.go", "if c.isr.has(i) {\n\t\tc.die", "if c.isr == bit(i) {\n\t\tc.die"},
	{"poison_early", "I19: somebody has everything", "evict.go", "if c.isr.has(k) && !(c.evictReq", "if false && !(c.evictReq"},
	{"fenced_fails", "14.2: a session that is served no more", "session.go", "(msg.Status == replication.StatusFenced || msg", "(msg"},
	{"shutdown_fails", "14.2: a replica that shuts down", "session.go", "|| msg.Status == replication.StatusShuttingDown) {", ") {"},
	{"detach_stalled", "5.4: a detach that cannot be drained is in nobody's way", "change.go", "if c.detachReq && !c.writesStalled() {", "if c.detachReq {"},
	{"lapsed_for_long", "4: a policy that is met again binds at once", "join.go", "	c.watchPolicy() // before anybody is let go because nothing is protected\n", ""},
	{"resync_never_yields", "9.3: a consumer goes first", "pace.go", "case p.slow*100 > p.n:", "case false:"},
	{"resync_out_of_turn", "9.3: so many resyncs at once", "join.go", "!c.mayJoin.has(i) || ", ""},
	{"resync_of_another", "9.3: the one whose turn it is", "join.go", "c.mayJoin |= bit(i)", "c.mayJoin, _ = ^mask(0), i"},
	{"recovery_throttled", "9.3: what in-sync replicas may differ in waits for no rate", "copy.go", "c.budget(0)", "c.budget(c.o.ResyncRate)"},
	{"resync_without_floor", "9.3: a resync comes to an end", "pace.go", "max(p.rate/2, floor)", "p.rate/2"},
	{"quiet_beside_copies", "9.3: quiet is without copies", "pace.go", "case !copying && (p.copied == 0 || io.born-p.copied >= probeRest):", "case true:"},
	{"quiet_once", "9.3: what is quiet is learned anew", "pace.go", "wait >= probeWait || p.unknown &&", "p.probed == 0 || p.unknown &&"},
	{"whole_spans", "9.3: a consumer waits for little", "bucket.go", "return paceUnit", "return copySpan"},
	{"rate_overflow", "9.3: the budget after a long pause", "bucket.go", "float64(now-b.at) * float64(rate) / 1e9", "float64((now - b.at) * rate / 1e9)"},
	{"copy_no_space_faults", "12: no space is no failure", "copy.go", "c.requestEvict(r.to, refusal(st))", "c.requestEvict(r.to, diskFailed)"},
	{"copy_read_faults", "12: a read error is no failure", "copy.go", "c.requestEvict(r.to, unreadable)", "c.requestEvict(r.to, diskFailed)"},
	{"damaged_copy_waits", "9.1: a joiner that cannot be compared is given up", "copy.go", "case st == replication.StatusIO && r.kind == askHash:\n\t\tc.requestEvict(r.to, unreadable)", "case st == replication.StatusIO && r.kind == askHash:"},
	{"damaged_read_again", "9.4: a damaged block is read elsewhere", "dispatch.go", "if st != replication.StatusCRC || io.damaged.has(i) {", "if st != replication.StatusIO && io.damaged.has(i) {"},
	{"old_answers", "I6: answers of a session that was given up", "session.go", "if msg.Session != m.sess || !m.open || c.stage", "if !m.open || c.stage"},
	{"takeover_unflushed", "I13: a takeover settles what it found", "takeover.go", "c.lastFlush, c.wroteSeq = c.now, true", "c.lastFlush, c.wroteSeq = c.now, false"},
	{"join_unflushed", "I13: a join settles the joiner's log", "join.go", "\tc.wroteSeq = true // a flush settles what its", "\t// a flush settles what its"},
	{"reconcile_unflushed", "I13: what was reconciled is settled", "copy.go", "\tc.wroteSeq = true // a flush settles what the", "\t// a flush settles what the"},
	{"joiner_told_before", "I13: a joiner is told again what is settled", "join.go", "m.stable = 0 //", "_ = m //"},
	{"detach_leftovers", "5.4: what comes after the drain", "detach.go", "c.abortAll(replication.ErrClosed) //", "//"},
	{"detach_waits_copies", "5.4: a copy does not keep a detach", "detach.go", "\t\t\tio.copy.failed = true\n", "\t\t\t_ = io\n"},
	{"read_crc_for_ever", "F23: data that arrive damaged, and again", "dispatch.go", "if st != replication.StatusCRC || io.damaged.has(i) {", "if st != replication.StatusCRC {"},
	{"write_crc_for_ever", "F23: a path that damages everything", "session.go", "case !io.spoilt.has(i):", "case true:"},
	{"copy_crc_for_ever", "F23: a path that damages every copy", "copy.go", "m.damaged < copyTries {", "true {"},
	{"seq_wraps", "I11: the log has no room for the last number", "replicaio.go", "msg.Seq == math.MaxUint64 || msg.StableSeq", "msg.StableSeq"},
	{"settled_unused", "I13: what is settled was used", "replicaio.go", "|| msg.StableSeq > max(r.used, msg.Seq) {", "{"},
	{"settled_before_done", "I13: nothing is settled before it is done", "replicaio.go", "return msg.Seq > max(r.stable, msg.StableSeq)", "return msg.Seq != 0"},
	{"any_term", "I6: a term that no election gives", "replicacontrol.go", "q.Epoch == math.MaxUint64 || uint64(q.Term) > uint64(q.Epoch):", "false:"},
	{"short_map", "I14: a dirty map covers the volume", "join.go", "|| len(r.Dirty.Bits) < (c.blocks+7)/8 {", "{"},
	{"crowded_holds", "G6: who leaves of his own accord acknowledges meanwhile", "change.go", "c.holdAcks = c.holdAcks || c.must() != 0", "c.holdAcks = true"},
	{"group_acks", "15.3: acknowledgements wait until the group has left", "dispatch.go", "if c.groupHoldsAcks() {", "if false {"},
	{"group_leave", "15.3: who is to leave sends nothing there first", "dispatch.go", "c.cut != nil || c.groupHoldsWrites()", "c.cut != nil"},
	{"group_leaving", "15.3: others may know before it does that it has left", "group.go", "(s.leave || g.in && !s.stayed && c.leaving(s))", "s.leave"},
	{"group_unknown", "15.3: nothing is sent before the splits are known", "group.go", "if g.in && !g.known {", "if false {"},
	{"group_old_view", "15.3: what was read before the election", "group.go", "v.Term == c.term && c.term != 0", "true"},
	{"group_earlier_term", "15.3: what an earlier coordinator acknowledged is not known", "group.go", "side{domain: d, state: sideLate}", "side{domain: d, state: sideKept}"},
	{"group_late_kept", "15.3: who did not wait says so", "group.go", "s.state = sideLate\n\t\t}\n\t}\n\tg.since", "s.state = sideKept\n\t\t}\n\t}\n\tg.since"},
	{"group_bound", "15.3: nothing waits longer than the bound", "group.go", "case c.now-g.since >= c.o.GroupTimeout:", "case false:"},
	{"group_protected_split", "15.3: who acknowledges nothing for the sake of its protection begins no split", "group.go", "case s.state == sideLost && c.protectionStall():", "case false:"},
	{"group_protected_join", "15.3: what ends a protection's wait is a resync", "group.go", "if c.protectionStall() {\n\t\treturn false // nothing", "if false {\n\t\treturn false // nothing"},
	{"group_rest", "15.3: who left for the group alone rests", "join.go", "max(m.tryAt, m.rest)", "m.tryAt"},
	{"snapshot_undrained", "15.1: nothing is in flight", "snapshot.go", "case ch.step == stepQuiesce && c.drained():", "case ch.step == stepQuiesce:"},
	{"snapshot_unheld", "15.1: what comes meanwhile waits", "snapshot.go", "c.holdRequests(StallSnapshot, false)", "c.dropWaitingCopies()"},
	{"snapshot_by_one", "15.1: every in-sync replica has answered", "snapshot.go", "s.has.covers(c.isr):", "s.has != 0:"},
	{"snapshot_refused", "15.1: a refusal is none", "snapshot.go", "s.asked &^= bit(i)\n", "s.has |= bit(i)\n\t\treturn\n"},
	{"snapshot_unreconciled", "15.1: replicas that may differ are not cut", "snapshot.go", "case c.reconcile.Count() > 0:", "case false:"},
	{"snapshot_given_up", "15.1: nothing comes to a replica that may be at it still", "snapshot.go", "c.dropSession(i) // it may", "_ = i // it may"},
	{"snapshot_for_ever", "15.1: writes are held for so long and no longer", "snapshot.go", "s.err == nil && c.now >= ch.until", "false"},
	{"snapshot_unasked", "15.1: who waits is told", "snapshot.go", "s == nil || c.now < s.begin ||", "s == nil || true ||"},
	{"snapshot_beside_writes", "15.1: a replica is not cut while it writes", "replicaio.go", "r.cutting || r.altering > 0 ||", "r.cutting ||"},
	{"snapshot_then_writes", "15.1: nor does it write while it is cut", "replicaio.go", "if r.cutting && alters(msg.Type) {", "if false {"},
	{"snapshot_not_in_sync", "15.1: who is not in sync holds none", "replicaio.go", "if r.meta.State != replication.MemberInSync {\n\t\t\treturn replication.StatusState\n\t\t}\n\t\tif len", "if len"},
	{"group_protected_rest", "15.3: who has writes wait rests as long as the group has them wait", "group.go", "return min(c.o.GroupRest, c.o.GroupTimeout)", "return c.o.GroupRest << 4"},
	{"cut_no_hold", "I28: writes are held", "dispatch.go", "c.cut != nil || c.groupHoldsWrites()", "c.groupHoldsWrites()"},
	{"cut_not_drained", "I28: nothing is in flight", "cut.go", "if io.modifies() {", "if io.modifies() && false {"},
	{"cut_deadline", "15.2: a hold ends by itself", "cut.go", "(c.now >= c.cut.until || c.stage != stageServing)", "c.stage != stageServing"},
	{"cut_late", "I28: a hold that ended by itself makes the cut void", "cut.go", "\treturn held\n}", "\treturn held || c.cut == nil\n}"},
	{"cut_by_others", "I28: released by who holds", "cut.go", "c.cut == nil || c.cut.op != op || !c.cut.held", "c.cut == nil || !c.cut.held"},
	{"crowded_early", "I9: acknowledgements wait for the commit", "change.go", "c.isr, c.holdAcks = ch.isr, true", "c.isr = ch.isr"},
	{"crowded_last", "I2: asking to leave is the mildest reason", "evict.go", "return -1", "return 0"},
	{"crowded_unprotected", "max_protection: nobody leaves of his own accord", "evict.go", "s <= 0 && wait", "s == 0 && wait"},
	{"resize_at_once", "0028: every replica has grown before the configuration says so", "resize.go", "case c.round.done():\n\t\t\tc.round = nil", "case true:\n\t\t\tc.round = nil"},
	{"resize_no_room_ignored", "0028: no room is told", "replicacontrol.go", "case q.Size > r.o.Size: // it could not grow", "case false: // it could not grow"},
	{"resize_full_faults", "0028: a full pool is not the end of a replica", "replica.go", "(err == nil || errors.Is(err, block.ErrNoSpace))", "(err == nil || errors.Is(err, nil))"},
	{"resize_maps", "0028: dirty maps reach as far as the replica", "resize.go", "\t\tm.Grow(blocksOf(size))\n", ""},
	{"resize_maps_full", "0028: nobody lacks what is new", "resize.go", "\t\tm.Grow(blocksOf(size))\n", "\t\tm.Grow(blocksOf(size))\n\t\tm.SetAll()\n"},
	{"resize_in_memory", "0028: what a replica answers is durable", "replica.go", "if t.grow = r.growth(t); t.grow != 0 {", "if size := r.growth(t); size != 0 {\n\t\t\tr.grown(size)\n\t\t}\n\t\tif t.grow != 0 {"},
	{"resize_joiner_small", "0028: who comes in sync is as large as the volume", "join.go", "MarkAll: missing, Size: c.cfg.Size,", "MarkAll: missing,"},
	{"resize_reconcile", "0028: what is compared reaches as far as the volume", "resize.go", "\tc.reconcile.Grow(c.blocks)\n", ""},
	{"resize_shrinks", "0028: a volume never shrinks", "resize.go", "case size < c.cfg.Size || size%sector != 0:", "case size%sector != 0:"},
	{"resize_evicted_small", "0028: a commit to who is too small", "replicacontrol.go", "case cfg.Size > r.o.Size && self.State == replication.MemberInSync:", "case false:"},
	{"policy_when_told", "0021: a new policy binds before it is in force", "policy.go", "|| c.policyOpen() && !c.meets(c.policy.wanted.to, c.isr)", ""},
	{"policy_at_once", "0021: the old policy binds until the new one is in force", "policy.go", "!c.policy.lapsed && !c.meets(c.cfg.Policy(), c.isr) || c", "!c.policyOpen() && !c.policy.lapsed && !c.meets(c.cfg.Policy(), c.isr) || c"},
	{"policy_lapsed_stays", "0021: a new policy has its own time", "policy.go", "c.policy.unmet, c.policy.lapsed = 0, false\n\tch.step", "ch.step"},
	{"policy_evicts", "0021: who is needed is not evicted", "policy.go", "(c.cfg.Protection == replication.MaxProtection || !c.meets(c.cfg.Policy(), rest))", "c.cfg.Protection == replication.MaxProtection"},
	{"policy_for_ever", "0021: writes wait for so long", "policy.go", "case bound > 0 && !p.lapsed && c.now-p.unmet >= bound:", "case bound < 0:"},
	{"policy_bound_ignored", "0021: and not shorter", "policy.go", "c.now-p.unmet >= bound:", "true:"},
	{"policy_not_back", "0021: what is back is needed again", "policy.go", "p.unmet, p.lapsed = 0, false", "p.unmet = 0"},
	{"policy_min_ignored", "0021: so many in sync", "policy.go", "< p.InSync {", "< 0 {"},
	{"policy_domains_ignored", "0021: one in sync in each domain", "policy.go", "range p.Domains {", "range p.Domains[:0] {"},
	{"policy_epoch_ignored", "0021: decided in this epoch", "policy.go", "w.expect != 0 && w.expect != c.cfg.Epoch", "false"},
	{"policy_unknown_ends", "I10: a policy of unknown outcome", "policy.go", "c.change.kind == changePolicy && c.change.step != stepCommit", "c.change.kind == changePolicy && c.change.step != stepCommit && !c.change.unknown"},
	{"crowded_joins", "12: no join while there is no room", "join.go", "case r.Seal.Crowded:", "case false:"},
	{"crowded_for_ever", "12: who has room again stays", "session.go", "leave || c.evictReq.has(i) {", "leave {"},
	{"gray_never", "F18: who answers slowly for long leaves", "gray.go", "if c.now-max(io.sent, m.upAt) > c.o.EvictSlow {", "if false {"},
	{"gray_at_once", "F18: for long", "gray.go", "g.runs >= c.o.SlowWindows &&", "g.runs >= 1 &&"},
	{"gray_idle", "F18: few writes tell nothing", "gray.go", " && g.ofWrites >= c.o.SlowWrites", ""},
	{"gray_one", "F18: more than one in a hundred", "gray.go", "case m.gray.late*100 > m.gray.writes:", "case m.gray.late > 0:"},
	{"gray_all", "F18: what slows all down is not with them", "gray.go", "if late.has(i) && good != 0 {", "if late.has(i) {"},
	{"gray_forgives_nothing", "F18: one after the other", "gray.go", "\t\t\tg.runs, g.ofWrites, g.ofLate = 0, 0, 0\n", ""},
	{"gray_holds", "G6: who is slow acknowledges until it is decided", "evict.go", "return -3", "return 0"},
	{"gray_needed", "F18: nobody leaves whom the protection asks for", "gray.go", " && c.meets(c.cfg.Policy(), rest)", ""},
	{"gray_joins", "F18: who left for that rests", "join.go", " && c.Rests(i) == 0", ""},
	{"gray_rests_alike", "F18: longer each time", "gray.go", "c.o.SlowRest<<g.rests", "c.o.SlowRest"},
	{"gray_rests_needed", "F18: who is asked for does not rest", "gray.go", "if c.isr.has(member) || !c.meets(c.cfg.Policy(), c.isr) {", "if false {"},
	{"gray_pardoned_never", "F18: who is fast again in time stays", "gray.go", "\t\t} else {\n\t\t\tc.pardon(i, gray)\n\t\t}", "\t\t}"},
	{"rollback_goes_on", "I22: who knows more than the kvdb ends a takeover", "takeover.go", "if c.stage < stageServing && res.Seal != nil && res.Seal.Status == replication.StatusEpoch {", "if false {"},
	{"rollback_refused_late", "I22: also when it was not waited for", "takeover.go", "if c.stage < stageServing && res.Seal != nil &&", "if c.stage == stageSealing && res.Seal != nil &&"},
	{"lineage_ignored", "I22: another way to the same epoch", "replicacontrol.go", "case !replication.Follows(q.Epoch, q.Lineage, replication.Ancestor{Epoch: r.meta.Epoch, Gen: r.meta.Gen}):", "case q.Epoch < r.meta.Epoch:"},
	{"foreign_kvdb", "I22: another kvdb", "replicacontrol.go", "&& !slices.Contains(q.Former, r.meta.Incarnation):", "&& false:"},
	{"import_not_followed", "10.5: an import makes a successor", "replicacontrol.go", "&& !slices.Contains(q.Former, r.meta.Incarnation):", ":"},
	{"rollback_deposes", "G6: a rollback ends nobody, as seen", "coordinator.go", "case c.rolledBack(cfg): //", "case false: //"},
	{"rollback_conflicts", "G6: a rollback ends nobody, as found", "change.go", "case c.rolledBack(cfg):\n\t\tc.changeStall", "case false:\n\t\tc.changeStall"},
	{"forced_survived", "I24: what an operator forced is no rollback", "coordinator.go", "cfg.ForkGen == c.cfg.ForkGen &&", "true &&"},
	{"not_imported_waits", "I22: no takeover before the import", "change.go", ", ChangeRolledBack: replication.ErrRolledBack}[out]", "}[out]"},
	{"gone_kills", "G6: a volume whose replica is there was not deleted", "change.go", "(c.stage != stageServing || c.openSet()&c.isr == 0):", "true:"},
	{"stranger_deposes", "G6: who is not in sync deposes nobody", "takeover.go", "term > c.term && c.isr.has(ctl.to) && c.fenced() {", "term > c.term && c.fenced() {"},
	{"heal_wrong", "9.4: what is damaged is no source", "heal.go", "		if f == replication.FindingGood {\n			good |= bit(i)\n		}", "		good |= bit(i)"},
	{"heal_picks_differing", "9.4: both vouch and differ: nobody picks", "heal.go", "case other != 0 && !j.reconcile:", "case false:"},
	{"heal_picks_later", "9.4: nor when one of them rots besides", "heal.go", "case c.harms[off] == harmDiffers:", "case false:"},
	{"heal_picks_lost", "9.4: nobody vouches and they differ: nobody picks", "heal.go", "case good == 0 && alike && j.dst != 0:", "case good == 0 && j.dst != 0:"},
	{"reconcile_undecided", "I16: what cannot be compared does not count as equal", "heal.go", "case good == 0 && unread != 0 && j.reconcile:", "case false:"},
	{"heal_alone", "9.4: one copy vouches for nothing", "heal.go", "case good == 0 && alike && j.dst != 0:", "case good == 0 && alike:"},
	{"frozen_read", "9.4: what differs is not read", "dispatch.go", "io.from < 0 || c.frozen(io.Off, io.Len) {", "io.from < 0 {"},
	{"frozen_reconciled", "9.4: a comparison does not pick what differs", "copy.go", "case j.heal, j.reconcile && c.frozen(j.io.Off, j.io.Len):", "case j.heal:"},
	{"frozen_for_ever", "9.4: what is written is well again", "dispatch.go", "\t\tc.overwritten(io)\n", "\t\t_ = io\n"},
	{"frozen_thawed", "9.4: not by a write that failed", "dispatch.go", "case len(c.harms) > 0 && (io.failed|io.full)&c.isr == 0:", "case len(c.harms) > 0:"},
	{"harm_for_ever", "9.4: a verify looks again at what could not be healed", "verify.go", "same := !j.refused && !harmed", "same := !j.refused"},
	{"heal_unproved", "9.4: what was rewritten is looked at again", "heal.go", "f != replication.FindingGood || !bytes.Equal(h, want) {", "false && h == nil && want == nil && f == 9 {"},
	{"heal_unseen", "9.4: nothing is made right that was not looked at", "copy.go", "|| j.exam != examNone && !j.asFound(r.to, r.off, msg.Data) {", "{"},
	{"heal_unlocked", "I15: a heal has its range", "copy.go", "\tif c.dispatchable(&j.io) {\n\t\tc.dispatch(&j.io)", "\tif j.heal || c.dispatchable(&j.io) {\n\t\tc.dispatch(&j.io)"},
	{"heal_before_reconcile", "8: what may differ is for the comparison", "copy.go", "!c.openSet().covers(j.members()), j.heal && c.unreconciled(j.io.Off, j.io.Len):", "!c.openSet().covers(j.members()):"},
	{"heal_settled_early", "I13: no heal in flight in a region that leaves", "io.go", "(io.copy.heal || io.copy.reconcile)) && (", "io.copy.reconcile) && ("},
	{"reconcile_settled_early", "I13: nor a comparison's copy, when the others have left", "io.go", "(io.copy.heal || io.copy.reconcile)) && (", "io.copy.heal) && ("},
	{"heal_unflushed", "I13: what was healed is settled", "heal.go", "\t\tc.wroteSeq = true // a flush settles", "\t\t// a flush settles"},
	{"heal_unstable", "8: what was healed may be read at once", "copy.go", "if j.reconcile || j.heal {", "if j.reconcile {"},
	{"read_not_healed", "9.4: what a consumer finds is healed", "dispatch.go", "\t\tc.suspect(io.Off, io.Len)\n", "\t\t_ = io\n"},
	{"source_not_healed", "9.4: what a resync finds is healed", "copy.go", "\t\tc.suspect(r.job.io.Off, r.job.io.Len)\n", "\t\t_ = r\n"},
	{"verify_refusal_same", "9.4: who cannot answer is looked at", "verify.go", "same := !j.refused && !harmed", "same := !harmed"},
	{"verify_skips", "9.4: a verify comes back to what it could not decide", "heal.go", "\t\tc.verifyAgain()\n", ""},
	{"verify_unlocked", "9.4: what was not the same is asked for under the lock", "verify.go", "\tif v.lock {\n", "\tif false {\n"},
	{"digest_unhealed", "9.4: what is not the same counts when a heal has looked into it", "verify.go", "\tcase same, v.looks > 0 && harmed, v.looks == mostLooks:\n", "\tcase same, v.lock:\n"},
	{"digest_one_look", "9.4: what rots between the heal and the answer that counts is healed", "verify.go", "v.looks == mostLooks:", "v.looks > 0:"},
	{"digest_absent", "9.4: who was away for a piece has no digest", "verify.go", "\tv.sides &= j.members()\n", ""},
	{"digest_unread", "9.4: nor who could not read one", "verify.go", "\t\t\tv.dark |= bit(i)\n", ""},
	{"digest_blind", "9.4: what differs makes digests differ", "verify.go", "\t\t\tv.sums[i].Write(h)\n", "\t\t\tv.sums[i].Write(j.hashes[j.src])\n"},
	{"verify_hurries", "9.4: a verify waits for a resync", "verify.go", "c.join != nil || c.reconcile.Count() > 0 ||", ""},
	{"examine_stale", "I20: who is not in sync is not asked", "replicaio.go", "\tcase replication.MsgExamine:\n\t\tif r.meta.State != replication.MemberInSync {", "\tcase replication.MsgExamine:\n\t\tif false {"},
	{"examine_evicts", "9.4: who does not know yet that it has joined", "copy.go", "\tcase st == replication.StatusState && r.kind == askExam: //", "\tcase false: //"},
	{"zombie_release", "a request is released once nothing refers to it", "session.go", "c.complete(io, replication.ErrStalled)\n\t\t}", "c.complete(io, replication.ErrStalled); c.release(io)\n\t\t}"},
}

// TestMutants builds the package's tests with each mutant, by an overlay of one
// file, and runs the directed tests and the simulator on it. A mutant that neither
// catches fails the test. It prints a table: each mutant, the directed tests that
// catch it, after how many seeds the simulator does, and what that saw.
func TestMutants(t *testing.T) {
	base := mutant{name: "the core as it is"}
	bin, err := base.build(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if v := base.try(bin); v.err != nil || v.caught() {
		t.Fatalf("%s fails: %+v", base.name, v)
	}
	only := regexp.MustCompile(*mutantOnly)
	var rows []*mutant
	for i := range mutants {
		if only.MatchString(mutants[i].name) {
			rows = append(rows, &mutants[i])
		}
	}
	// Each process has one processor, so that a seed is the nth whatever else runs.
	verdicts := make([]chan verdict, len(rows))
	for i := range verdicts {
		verdicts[i] = make(chan verdict, 1)
	}
	var next atomic.Int64
	for range runtime.GOMAXPROCS(0) {
		go func() {
			for i := next.Add(1) - 1; int(i) < len(rows); i = next.Add(1) - 1 {
				verdicts[i] <- rows[i].examine(t.TempDir())
			}
		}()
	}
	begin, directed, simulated, alive := time.Now(), 0, 0, 0
	fmt.Fprintf(os.Stdout, "%-26s  %-58s  %5s  %s\n", "mutant", "directed tests", "seeds", "simulator")
	for i, m := range rows {
		v := <-verdicts[i]
		fmt.Fprintf(os.Stdout, "%-26s  %-58s  %5s  %s\n", m.name, v.directed, v.seeds, v.simulator)
		switch {
		case v.err != nil:
			t.Errorf("%s: %v", m.name, v.err)
		case !v.caught():
			alive++
			t.Errorf("%s SURVIVED (%s)", m.name, m.rule)
		}
		if v.directed != "" {
			directed++
		}
		if v.simulator != "" {
			simulated++
		}
	}
	fmt.Fprintf(os.Stdout, "%d mutants: %d caught by directed tests, %d by the simulator, %d by nothing; %v\n",
		len(rows), directed, simulated, alive, time.Since(begin).Round(time.Second))
}

// verdict is what became of a mutant.
type verdict struct {
	directed  string // the tests that caught it, "" if none did
	seeds     string // how many the simulator needed, "" if it did not catch it
	simulator string // what it saw
	err       error  // nothing is known
}

func (v *verdict) caught() bool { return v.directed != "" || v.simulator != "" }

// examine builds the mutant in dir and tries it.
func (m *mutant) examine(dir string) verdict {
	bin, err := m.build(dir)
	if err != nil {
		return verdict{err: err}
	}
	defer func() { _ = os.Remove(bin) }()
	return m.try(bin)
}

// build makes the test binary of the mutant in dir.
func (m *mutant) build(dir string) (bin string, err error) {
	bin = filepath.Join(dir, "core.test")
	args := []string{"test", "-c", "-vet=off", "-ldflags=-s -w", "-o", bin}
	if m.file != "" {
		overlay, err := m.overlay(dir)
		if err != nil {
			return "", err
		}
		args = append(args, "-overlay", overlay)
	}
	if out, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("does not compile: %w\n%s", err, out)
	}
	return bin, nil
}

// overlay writes the mutated file, and what tells the compiler to take it.
func (m *mutant) overlay(dir string) (file string, err error) {
	src, err := os.ReadFile(m.file)
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(src), m.old); n != 1 {
		return "", fmt.Errorf("the text to replace is %d times in %s", n, m.file)
	}
	repl := filepath.Join(dir, m.file)
	if err := os.WriteFile(repl, []byte(strings.Replace(string(src), m.old, m.new, 1)), 0o600); err != nil {
		return "", err
	}
	abs, err := filepath.Abs(m.file)
	if err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {abs: repl}})
	if err != nil {
		return "", err
	}
	file = filepath.Join(dir, "overlay.json")
	return file, os.WriteFile(file, overlay, 0o600)
}

var (
	seedHit  = regexp.MustCompile(`the (\d+)th seed: seed \d+: (.*)`)
	panicked = regexp.MustCompile(`panic: (.*)`)
	failed   = regexp.MustCompile(`--- FAIL: (\S+)`)
)

// endless is said of what uses up its time on the processor.
const endless = "never comes to an end"

// try runs the directed tests and the simulator.
func (m *mutant) try(bin string) (v verdict) {
	text, err := run(bin, 120, "-test.skip", "^TestSim$")
	switch {
	case errors.Is(err, errEndless):
		v.directed = endless
	case err != nil && panicked.MatchString(text):
		v.directed = fmt.Sprintf("panic: %.50s", panicked.FindStringSubmatch(text)[1])
	case err != nil:
		v.directed = names(text)
	}
	seeds := *mutantSeeds
	if v.directed != "" {
		seeds = min(seeds, *mutantKnown)
	}
	text, err = run(bin, 20+seeds/5, "-test.run", "^TestSim$", "-sim.shrink=false", "-sim.seeds", strconv.Itoa(seeds))
	switch hit := seedHit.FindStringSubmatch(text); {
	case err == nil:
	case hit != nil:
		v.seeds, v.simulator = hit[1], fmt.Sprintf("%.100s", hit[2])
	case errors.Is(err, errEndless):
		v.simulator = endless
	default:
		v.err = fmt.Errorf("the simulator ended with %w: %.1000s", err, text)
	}
	return v
}

var errEndless = errors.New(endless)

// run runs a test binary on one processor and returns what it prints. The limit is in seconds of
// processor time, some eight times what is needed, so that a machine that does other things catches no mutant.
func run(bin string, limit int, args ...string) (text string, err error) {
	c := exec.Command("sh", append([]string{"-c", fmt.Sprintf(`ulimit -t %d; exec "$0" "$@"`, limit), bin, "-test.timeout", "0"}, args...)...)
	c.Env = append(os.Environ(), "GOMAXPROCS=1")
	out, err := c.CombinedOutput()
	if s, ok := c.ProcessState.Sys().(syscall.WaitStatus); ok && s.Signaled() && s.Signal() == syscall.SIGKILL {
		err = errEndless
	}
	return string(out), err
}

// names are the tests that failed: the first ones, without those that only contain others.
func names(text string) string {
	const most = 2
	var all []string
	for _, f := range failed.FindAllStringSubmatch(text, -1) {
		all = append(all, f[1])
	}
	all = slices.DeleteFunc(all, func(n string) bool {
		return slices.ContainsFunc(all, func(o string) bool { return strings.HasPrefix(o, n+"/") })
	})
	if n := len(all) - most; n > 0 {
		all = append(all[:most], fmt.Sprintf("and %d more", n))
	}
	return strings.ReplaceAll(strings.Join(all, " "), "TestScenarios/", "")
}
