/* A coordinator: core.Coordinator, what is not between it and one member. */

inline propose(c, kind, set) {
	ps[c] = 1; pk[c] = kind; pe[c] = ep[c]; pis[c] = set
}

inline resolved(c) {
	ep[c] = pe[c] + 1;
	ps[c] = 0; pk[c] = 0; pe[c] = 0; pis[c] = 0
}

/* dropMember for all of a set. */
inline drop_members(c, set) {
	for (k : 0 .. NREP - 1) {
		if
		:: HAS(set, k) ->
			session_lost(c, k);
			bk[c] = bk[c] & ~B(k); bo[c] = bo[c] & ~B(k)
		:: else
		fi
	}
	dd[c] = dd[c] && (isr[c] & (isr[c] - 1));	/* one copy: nothing to differ from */
	evr[c] = evr[c] & isr[c]; evd[c] = evd[c] & isr[c]; evj[c] = evj[c] & isr[c]; evl[c] = evl[c] & isr[c]
}

inline send_flush(c) {
	ff[c] = true; fack[c] = 0; ftg[c] = isr[c] | SYNCING(c);
#ifdef M_EARLY_CLEAN
	fcov[c] = last[c];
#else
	fcov[c] = (wv[c] -> SEQ(wv[c]) - 1 : last[c]);
#endif
	fsn[c] = legal;
	wrote[c] = false;
	for (k : 0 .. NREP - 1) {
		if
		:: HAS(ftg[c] & op[c], k) -> fst[X(c,k)] = true
		:: else
		fi
	}
	skip
}

/* Who is waited for in a takeover: the reachable members of the in-sync set in domains that are in service. */
#define WAITED(c)	((FENCED(DOMAIN(0)) || !REACH(c, 0) -> 0 : 1) | (FENCED(DOMAIN(1)) || !REACH(c, 1) -> 0 : 2) | THIRD(c))
#if NREP == 3
#define THIRD(c)	(FENCED(DOMAIN(2)) || !REACH(c, 2) -> 0 : 4)
#else
#define THIRD(c)	0
#endif
#define OPEN_DOMAINS	((FENCED(0) -> 0 : INSIDE(0)) | (FENCED(1) -> 0 : INSIDE(1)))
#define SOLID(c)	(ssl[c] & ~slos[c] & OPEN_DOMAINS)
#ifdef M_KEEP_LOSSY
#define CHOSEN(c)	(ssl[c] & OPEN_DOMAINS)
#else
#define CHOSEN(c)	(SOLID(c) -> SOLID(c) : ssl[c] & OPEN_DOMAINS)
#endif
#define LOST(c)		(isr[c] & ~nx[c])

#define EVICTABLE(c)	(WISHED(c) && COVERS(op[c], isr[c] & ~WISHED(c)))

inline begin_evict(c) {
#ifdef M_ACK_BEFORE_CAS
	m2 = WISHED(c);
	isr[c] = isr[c] & ~m2;
	drop_members(c, m2);
	ch[c] = 0
#else
	ha[c] = true;
	nx[c] = isr[c] & ~WISHED(c);
#ifdef M_NO_PREPARE
	got[c] = nx[c];
#else
	got[c] = 0;
#endif
	ch[c] = C_EVICT
#endif
}

proctype coordinator(byte c) {
end:	do
	/* Takeover (takeover.go). The election is one step: what it loses by an unknown outcome is an attachment. */
	:: d_step {
		st[c] == IDLE && natt < NATT && !FENCED(c) && (natt || c == 0) ->	/* the first, by symmetry */
		natt++;
		frep[1 - c] = (MINE(1 - c) -> kisr : frep[1 - c]);
		kepoch++; kterm = kepoch; kcoord = c + 1;
		tm[c] = kepoch; ep[c] = kepoch; isr[c] = kisr;
		ps[c] = 0; pk[c] = 0; pe[c] = 0; pis[c] = 0;	/* what an earlier attachment sent has lost */
		st[c] = SEALING
	}
	:: d_step {	/* sealed: who is silent is waited for in vain */
		st[c] == SEALING && CHOSEN(c) && COVERS(ssl[c], isr[c] & WAITED(c)) ->
		nx[c] = CHOSEN(c); got[c] = 0;
		st[c] = PREPARING
	}
	:: d_step {
		st[c] == PREPARING && COVERS(got[c], nx[c]) ->
		propose(c, K_ACTIVATE, nx[c]);
		got[c] = 0;
		st[c] = ACTIVATING
	}
	:: d_step {	/* begin again with those who answered */
		st[c] == PREPARING && got[c] && !COVERS(got[c], nx[c]) && COVERS(got[c], nx[c] & WAITED(c)) ->
		nx[c] = got[c]; got[c] = 0
	}
	:: d_step {
		st[c] == ACTIVATING && ps[c] == 2 ->
		resolved(c);
		isr[c] = nx[c]; nx[c] = 0; got[c] = 0;
		st[c] = COMMITTING
	}
	:: d_step {	/* serve; with acknowledgements held if somebody was not told */
		st[c] == COMMITTING && got[c] && (COVERS(got[c], isr[c]) || COVERS(got[c], isr[c] & WAITED(c))) ->
		ha[c] = !COVERS(got[c], isr[c]);
		evr[c] = isr[c] & ~got[c];
#ifndef M_NO_RECONCILE
		dd[c] = (isr[c] & (isr[c] - 1)) && (sact[c] & isr[c]);
#endif
		bk[c] = bk[c] & isr[c]; bo[c] = bo[c] & isr[c];
		ssl[c] = 0; slos[c] = 0; sact[c] = 0; got[c] = 0;
		last[c] = 1; wrote[c] = true;
		st[c] = SERVING
	}
	/* What ends it: it is killed, or it learns that it was replaced or that its domain is closed. */
	:: d_step {
		st[c] != IDLE && ndie < NDIE ->
		ndie++;
		die(c)
	}
	:: d_step {
		st[c] != IDLE && (!MINE(c) || ps[c] == 3 || FENCED(c)) ->
		die(c)
	}
	/* Requests (dispatch.go). */
	:: d_step {
		st[c] == SERVING && !hd[c] && !wv[c] &&
#ifndef M_RESYNC_UNORDERED
			!cp[c] &&
#endif
			nw < NW ->
		nw++;
		wv[c] = nw; wack[c] = 0; wap[c] = 0; wtg[c] = isr[c] | SYNCING(c);
		last[c] = SEQ(nw);
		wrote[c] = true;
		legal = legal | B(nw); since = since | B(nw);
		fsn[0] = (ff[0] -> fsn[0] | B(nw) : 0); fsn[1] = (ff[1] -> fsn[1] | B(nw) : 0);
		for (k : 0 .. NREP - 1) {
			if
			:: HAS(wtg[c] & op[c], k) -> wst[X(c,k)] = 1; wvl[X(c,k)] = nw; wtm[X(c,k)] = tm[c]
			:: else
			fi
		}
		skip
	}
	:: d_step {	/* settle */
		wv[c] && !ha[c] && (!wdel[c] || COVERS(wack[c], wtg[c] & (isr[c] | SYNCING(c)))) &&
#ifdef M_ACK_ANY
			(wack[c] & isr[c]) ->
#else
			COVERS(wack[c], NEED(c)) ->
#endif
		if
		:: !wdel[c] -> acked(c); wdel[c] = true
		:: else
		fi;
		if
		:: COVERS(wack[c], wtg[c] & (isr[c] | SYNCING(c))) ->
			wv[c] = 0; wack[c] = 0; wtg[c] = 0; wap[c] = 0; wdel[c] = false;
			wrote[c] = true
		:: else
		fi;
		check()
	}
	:: d_step {
		st[c] == SERVING && !hd[c] && !ff[c] && wrote[c] ->
		send_flush(c)
	}
	:: d_step {
		ff[c] && !ha[c] && (!fdel[c] || COVERS(fack[c], ftg[c] & (isr[c] | SYNCING(c)))) &&
#ifdef M_FLUSH_LOCAL_ONLY
			(fack[c] & isr[c]) ->
#else
			COVERS(fack[c], FNEED(c)) ->
#endif
		if
		:: !fdel[c] -> flushed(c); fdel[c] = true
		:: else
		fi;
		if
		:: COVERS(fack[c], ftg[c] & (isr[c] | SYNCING(c))) ->
#ifdef M_CLEAN_UNRECONCILED
			stb[c] = (fcov[c] > stb[c] -> fcov[c] : stb[c]);
#else
			stb[c] = (!dd[c] && fcov[c] > stb[c] -> fcov[c] : stb[c]);
#endif
			ff[c] = false; fdel[c] = false; ftg[c] = 0; fack[c] = 0; fcov[c] = 0; fsn[c] = 0
		:: else
		fi;
		check()
	}
	:: d_step {	/* a read; only of the coordinator that the kvdb names, see docs/design/0006 */
		st[c] == SERVING && COVERS(op[c], isr[c]) && !wv[c] && !cp[c] &&
#ifndef STRICT_READS
			MINE(c) &&
#endif
#ifndef M_READ_UNRECONCILED
			!dd[c] &&
#endif
			LIVE(c, LOCAL(c, isr[c])) && isync[LOCAL(c, isr[c])] && legal != B(val[LOCAL(c, isr[c])]) ->
		m = val[LOCAL(c, isr[c])];
		was_read(m);
		check()
	}
	/* D (Coordinator.sweep, reconcileReads): one authority, the others are made equal. */
	:: d_step {
		st[c] == SERVING && dd[c] && !cp[c] && !hd[c] && !ha[c] && !wv[c] && COVERS(op[c], isr[c]) &&
#if NREP == 3
			LIVE(c, 2) >= HAS(isr[c], 2) &&
#endif
			LIVE(c, 0) >= HAS(isr[c], 0) && LIVE(c, 1) >= HAS(isr[c], 1) ->
		m = LOCAL(c, isr[c]);
		for (k : 0 .. NREP - 1) {
			if
			:: HAS(isr[c], k) && val[k] != val[m] ->
				cst[X(c,k)] = true; cvl[X(c,k)] = val[m]; ctm[X(c,k)] = tm[c]; cfua[X(c,k)] = true;
				cpt[c] = cpt[c] | B(k)
			:: else
			fi
		}
		cp[c] = 2; csrc[c] = m;
		last[c] = last[c] | 1;
		copy_step(c);
		check()
	}
	/* Eviction (change.go, evict.go): prepare, compare-and-set, commit, acknowledge. */
	:: d_step {
		FREE(c) && EVICTABLE(c) ->
		begin_evict(c)
	}
	:: d_step {	/* called off, or begun again with fewer */
		ch[c] == C_EVICT && !ps[c] && (!COVERS(WISHED(c), LOST(c)) && COVERS(op[c], LOST(c)) || (WISHED(c) & nx[c])) ->
		ch[c] = 0; nx[c] = 0; got[c] = 0
	}
	:: d_step {
		ch[c] == C_EVICT && !ps[c] && COVERS(got[c], nx[c]) &&
			!(!COVERS(WISHED(c), LOST(c)) && COVERS(op[c], LOST(c)) || (WISHED(c) & nx[c])) ->
		propose(c, K_EVICT, nx[c])
	}
	:: d_step {
		ch[c] == C_EVICT && ps[c] == 2 ->
		resolved(c);
		m2 = LOST(c);
		isr[c] = nx[c]; nx[c] = 0; got[c] = 0;
		drop_members(c, m2);
		ch[c] = C_COMMIT
	}
	:: d_step {
		ch[c] == C_COMMIT && (COVERS(got[c], isr[c]) || WISHED(c)) ->
		ha[c] = !COVERS(got[c], isr[c]) || WISHED(c);
		ch[c] = 0; got[c] = 0
	}
	:: d_step {	/* everybody is back: the survivors forget it */
		FREE(c) && ha[c] && COVERS(op[c], isr[c]) && !WISHED(c) ->
		ch[c] = C_RESTORE; got[c] = 0
	}
	:: d_step {
		ch[c] == C_RESTORE && (COVERS(got[c], isr[c]) || WISHED(c)) ->
		ha[c] = !COVERS(got[c], isr[c]);
		ch[c] = 0; got[c] = 0
	}
	/* Join (join.go). */
	:: d_step {	/* SYNCING in the kvdb, in one step: it binds nobody. Then requests are held until nothing is in flight. */
		FREE(c) && js[c] == J_SEALED && !ha[c] && !WISHED(c) && COVERS(op[c], isr[c]) && MINE(c) && ep[c] == kepoch && !FENCED(c) ->
		kepoch++; ep[c] = kepoch;
		hd[c] = true;
		js[c] = J_QUIESCE
	}
	:: d_step {	/* the dirty map of one in-sync member */
		js[c] == J_QUIESCE && QUIET(c) && !cp[c] && (isr[c] & op[c]) && REACH(c, LOCAL(c, isr[c] & op[c])) &&
			term[LOCAL(c, isr[c] & op[c])] == tm[c] && COVERS(miss[LOCAL(c, isr[c] & op[c])], J(c)) ->
		jtodo[c] = jtodo[c] || (dm[LOCAL(c, isr[c] & op[c])] & J(c));
#ifdef M_MAP_DROPPED_WHILE_SYNCING
		for (k : 0 .. NREP - 1) {
			if
			:: HAS(isr[c], k) -> miss[k] = miss[k] & ~J(c); dm[k] = dm[k] & ~J(c)
			:: else
			fi
		}
#endif
		js[c] = J_TELL
	}
	:: d_step {	/* it did not start in time, or cannot go on (abandonStartSync) */
		jq[c] && js[c] < J_COPY && (!REACH(c, jq[c] - 1) || HAS(bo[c], jq[c] - 1) || FENCED(DOMAIN(jq[c] - 1)) ||
			STARTING(c) && (WISHED(c) || !COVERS(op[c], isr[c]))) ->
		forget_join(c);
#ifdef M_HELD_FOR_EVER
		hd[c] = true
#endif
	}
	:: d_step {	/* beginStopSync */
		FREE(c) && jfail[c] ->
		forget_join(c)
	}
	:: d_step {	/* fillCopies: under the lock of its range (I15) */
		FREE(c) && js[c] == J_COPY && jtodo[c] && !cp[c] && !ha[c] && !jfail[c] &&
#ifndef M_RESYNC_UNORDERED
			!wv[c] &&
#endif
			(isr[c] & op[c]) && LIVE(c, LOCAL(c, isr[c] & op[c])) && LIVE(c, jq[c] - 1) ->
		m = LOCAL(c, isr[c] & op[c]);
		k = jq[c] - 1;
		if
		:: val[k] != val[m] ->
			cst[X(c,k)] = true; cvl[X(c,k)] = val[m]; ctm[X(c,k)] = tm[c];
			cpt[c] = B(k)
		:: else
		fi;
		cp[c] = 1; csrc[c] = m;
		last[c] = last[c] | 1;
		copy_step(c)
	}
	:: d_step {	/* wait-mode; then nothing older is on the way to the joiner, then its flush (I18) */
		FREE(c) && js[c] == J_COPY && !jtodo[c] && !cp[c] && !ha[c] && !jfail[c] ->
		js[c] = J_WAIT
	}
	:: d_step {
		FREE(c) && js[c] == J_WAIT && !ha[c] && !jfail[c] && !(wv[c] && (wtg[c] & J(c)) && !(wack[c] & J(c))) ->
#ifdef M_JOIN_WITHOUT_FLUSH
		js[c] = J_FLUSHED
#else
		jst[X(c,jq[c] - 1)] = true;
		js[c] = J_FLUSH
#endif
	}
	:: d_step {
		FREE(c) && js[c] == J_FLUSHED && !ha[c] && !jfail[c] && !WISHED(c) && !ps[c] ->
		propose(c, K_JOIN, isr[c] | J(c));
		ch[c] = C_JOIN
	}
	:: d_step {	/* joined */
		ch[c] == C_JOIN && ps[c] == 2 ->
		resolved(c);
		isr[c] = isr[c] | J(c);
		if
		:: jfail[c] -> dd[c] = true; evr[c] = evr[c] | J(c); evj[c] = evj[c] | J(c)
		:: else
		fi;
		jq[c] = 0; js[c] = 0; jfail[c] = false;
		got[c] = 0;
		ch[c] = C_JOINED
	}
	:: d_step {
		ch[c] == C_JOINED && COVERS(got[c], isr[c]) ->
		wrote[c] = true;
		ch[c] = 0; got[c] = 0
	}
	:: d_step {	/* an eviction goes first, in the same breath; should it be called off, C_RESTORE commits */
		ch[c] == C_JOINED && !COVERS(got[c], isr[c]) && EVICTABLE(c) ->
		wrote[c] = true;
		begin_evict(c)
	}
#ifdef CODE_JOIN_COMMIT_GIVEN_UP
	:: d_step {	/* nobody can go yet, and yet the round is given up */
		ch[c] == C_JOINED && !COVERS(got[c], isr[c]) && WISHED(c) && !EVICTABLE(c) ->
		wrote[c] = true;
		ch[c] = 0; got[c] = 0
	}
#endif
#ifdef M_UNKNOWN_IS_NOT_SENT
	:: d_step {	/* a join of unknown outcome is taken for one that was not sent */
		ch[c] == C_JOIN && ps[c] && jfail[c] ->
		ch[c] = 0;
		forget_join(c)
	}
#endif
	/* Detach (change.go): drain, flush, configuration without coordinator, what is settled is said. */
	:: d_step {
		FREE(c) && ndetach < NDETACH && !jq[c] && !ha[c] && QUIET(c) && !cp[c] ->
		ndetach++;
		hd[c] = true;
#ifndef M_DETACH_UNFLUSHED
		send_flush(c);
#endif
		ch[c] = C_DETACH
	}
	:: d_step {
		ch[c] == C_DETACH && EVICTABLE(c) ->
		hd[c] = false;
		ch[c] = 0
	}
	:: d_step {
		ch[c] == C_DETACH && !ff[c] && MINE(c) && ep[c] == kepoch && !FENCED(c) ->
		kepoch++; ep[c] = kepoch; kcoord = 0;
		got[c] = 0;
		ch[c] = C_DETACHED	/* not MINE any more: it ends, with or without the commits */
	}
	od
}
