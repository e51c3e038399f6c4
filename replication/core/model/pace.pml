/* What takes its own time at a coordinator: requests, answers of the kvdb, timeouts, copies, its end. */

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

proctype pace(byte c) {
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
	:: d_step {	/* who is silent is waited for in vain */
		st[c] == SEALING && !COVERS(ssl[c], isr[c]) && CHOSEN(c) && COVERS(ssl[c], isr[c] & WAITED(c)) ->
		sealed(c)
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
	:: d_step {
		st[c] == COMMITTING && got[c] && !COVERS(got[c], isr[c]) && COVERS(got[c], isr[c] & WAITED(c)) ->
		serve(c)
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
	:: d_step {
		nflush < NFLUSH && st[c] == SERVING && !hd[c] && !ff[c] && wrote[c] ->
		nflush++;
		send_flush(c)
	}
	:: d_step {	/* a read; only of the coordinator that the kvdb names, which is for leases to see to (I8) */
		st[c] == SERVING && COVERS(op[c], isr[c]) && !wv[c] && !cp[c] &&
#ifndef M_READ_OF_ANY
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
		st[c] == SERVING && dd[c] && !cp[c] && !hd[c] && !ha[c] && !wv[c] && ch[c] != C_JOIN && COVERS(op[c], isr[c]) &&
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
	/* Eviction is in force. */
	:: d_step {
		ch[c] == C_EVICT && ps[c] == 2 ->
		resolved(c);
		m2 = LOST(c);
		isr[c] = nx[c]; nx[c] = 0; got[c] = 0;
		drop_members(c, m2);
		ch[c] = C_COMMIT
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
			:: HAS(isr[c], k) -> miss[k] = miss[k] & ~J(c); dm[k] = dm[k] & ~J(c); sdm[k] = dm[k]
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
		ch[c] == C_DETACH && !ff[c] && MINE(c) && ep[c] == kepoch && !FENCED(c) ->
		kepoch++; ep[c] = kepoch; kcoord = 0;
		got[c] = 0;
		ch[c] = C_DETACHED	/* not MINE any more: it ends, with or without the commits */
	}
	od
}

/* The flush in the background, of the lowest priority. */
proctype background(byte c) {
end:	do
	:: d_step {
		st[c] == SERVING && !hd[c] && !ff[c] && wrote[c] ->
		send_flush(c)
	}
	od
}
