/* A model of replication/core for spin. README.md says what stands for what. */
#include "state.pml"
#include "invariants.pml"
#include "replica.pml"
#include "member.pml"
#include "link.pml"
#include "coordinator.pml"
#include "pace.pml"

/* The kvdb: a compare-and-set takes effect at any time after it was sent, once, or never; the answer is heard of later. */
proctype kvdb(byte c) {
end:	do
	:: d_step {
		ps[c] == 1 &&
#ifndef M_NO_CAS_GUARD
			pe[c] == kepoch &&
#endif
#ifndef M_NO_DOMAIN_GUARD
			!FENCED(c) &&
#endif
			true ->
		assert(pe[c] + 1 > kepoch || I1_one_change_per_epoch);
		assert(pis[c] || I2_somebody_stays);
		assert(!(pis[c] & ~kisr) || pk[c] == K_JOIN || I2_somebody_stays);
		for (i : 0 .. NREP - 1) {
			assert(st[c] == IDLE || !IN(i) || term[i] <= tm[c] || I7_sealed_means_no_new_ack)
		}
		kepoch = pe[c] + 1;
		if
		:: pk[c] == K_ACTIVATE && !(pis[c] & ~gl) ->	/* everybody lost power: back to what was flushed */
			legal = since;
			gl = gl & ~pis[c]
		:: pk[c] == K_ACTIVATE && (pis[c] & ~gl) ->
			assert(!(pis[c] & gl & slos[c]) || I19_lossy_left_out)	/* who loses power after it was sealed is found by its boot */
		:: pk[c] != K_ACTIVATE
		fi;
		for (i : 0 .. NREP - 1) {
			assert(pk[c] != K_ACTIVATE || !HAS(pis[c] & ~gl, i) || HAS(legal, val[i]) || RPO_after_takeover)
		}
		kisr = pis[c];
		ps[c] = 2;
		if
		:: st[c] == IDLE -> ps[c] = 0; pk[c] = 0; pe[c] = 0; pis[c] = 0
		:: else
		fi;
		check()
	}
	:: d_step {
		ps[c] == 1 && pe[c] != kepoch ->
		ps[c] = 3;
		if
		:: st[c] == IDLE -> ps[c] = 0; pk[c] = 0; pe[c] = 0; pis[c] = 0
		:: else
		fi
	}
	/* The operator: deactivation is refused if nobody outside is in sync; it ends at some time. */
	:: d_step {
		nfence < NFENCE && !FENCED(c) && (kisr & ~INSIDE(c)) ->
		nfence++;
		kfenced = kfenced | B(c)
	}
	:: d_step {
		FENCED(c) ->
		kfenced = kfenced & ~B(c)
	}
	od
}

/* A control request that arrives late. */
proctype late() {
end:	do
	:: d_step {
		lk && HAS(up, lr) ->
		if
		:: lk == 1 && term[lr] == lt -> prepare(lr, lm)
		:: lk == 2 && term[lr] == lt && le >= mep[lr] -> commit(lr, le, lm)
		:: else
		fi;
		lk = 0; lr = 0; lt = 0; le = 0; lm = 0;
		check()
	}
	od
}

/* When nothing can happen any more (every fault is over, every replica up, every link whole), a coordinator that the kvdb
 * names has all replicas in sync and equal, and nothing unfinished. */
#define SERVES(c)	(st[c] == SERVING && MINE(c))
#define AT_REST(c)	(isr[c] == ALL && COVERS(op[c], ALL) && !dd[c] && !wv[c] && !ff[c] && !jq[c] && !ch[c] && !ha[c] && !hd[c] && nw == NW)
#define SAME(a, b)	(val[a] == val[b] && !LOGGED(a) && !LOGGED(b) && !lossy[a] && !lossy[b] && isync[a] && isync[b] && poss[a] == B(val[a]) && poss[b] == B(val[b]))

proctype rest() {
	if
	:: timeout ->
		assert((!SERVES(0) && !SERVES(1)) || (kisr == ALL && SAME(0, NREP - 1) && SAME(0, 1)) || CONVERGENCE);
		assert(!SERVES(0) || AT_REST(0) || CONVERGENCE);
		assert(!SERVES(1) || AT_REST(1) || CONVERGENCE);
		assert((st[0] == IDLE || SERVES(0)) && (st[1] == IDLE || SERVES(1)) || CONVERGENCE)
	fi
}

init priority 4 {
	atomic {
		for (i : 0 .. NREP - 1) {
			poss[i] = 1
		}
#ifndef COLD
		/* Coordinator 0 has taken the volume over, and all is well. */
		natt = 1; kepoch = 3; kterm = 2; kcoord = 1;
		st[0] = SERVING; tm[0] = 2; ep[0] = 3; isr[0] = ALL; op[0] = ALL; bk[0] = ALL; last[0] = 1;
		for (i : 0 .. NREP - 1) {
			term[i] = 2; mep[i] = 3; rs[i] = 1
		}
#endif
		for (k : 0 .. 1) {
			run coordinator(k) priority 3;
			run pace(k) priority 2;
			run background(k) priority 1;
			run kvdb(k) priority 2;
			for (i : 0 .. NREP - 1) {
				run member(k, i) priority 2;
				run link(k, i) priority 2
			}
		}
		for (i : 0 .. NREP - 1) {
			run faults(i) priority 2
		}
		run late() priority 2;
		run rest() priority 1
	}
}
