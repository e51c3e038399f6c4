/* A coordinator: core.Coordinator, what is not between it and one member.
 * Its process has what Coordinator.progress does after an input, at once: nothing else happens in between (priority, see
 * tandem.pml). The process `pace` has what takes its own time. */

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
	tell[c] = tell[c] & isr[c];
	evr[c] = evr[c] & isr[c]; evd[c] = evd[c] & isr[c]; evj[c] = evj[c] & isr[c]; evl[c] = evl[c] & isr[c]
}

/* The domains that are in service, and whom of them is waited for in a takeover: who can be reached. */
#define OPEN_DOMAINS	((FENCED(0) -> 0 : INSIDE(0)) | (FENCED(1) -> 0 : INSIDE(1)))
#if NREP == 3
#define REACHED(c)	((REACH(c, 0) -> 1 : 0) | (REACH(c, 1) -> 2 : 0) | (REACH(c, 2) -> 4 : 0))
#else
#define REACHED(c)	((REACH(c, 0) -> 1 : 0) | (REACH(c, 1) -> 2 : 0))
#endif
#define WAITED(c)	(OPEN_DOMAINS & REACHED(c))
#define SOLID(c)	(ssl[c] & ~slos[c] & OPEN_DOMAINS)
#ifdef M_KEEP_LOSSY
#define CHOSEN(c)	(ssl[c] & OPEN_DOMAINS)
#else
#define CHOSEN(c)	(SOLID(c) -> SOLID(c) : ssl[c] & OPEN_DOMAINS)
#endif

inline sealed(c) {		/* Coordinator.prepare */
	nx[c] = CHOSEN(c); got[c] = 0;
	st[c] = PREPARING
}

inline serve(c) {		/* Coordinator.serve; with acknowledgements held if somebody was not told */
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

/* Eviction (change.go, evict.go): prepare, compare-and-set, commit, acknowledge. */
#define EVICTABLE(c)	(WISHED(c) && COVERS(op[c], isr[c] & ~WISHED(c)))
#define LOST(c)		(isr[c] & ~nx[c])
#define CALLED_OFF(c)	(!COVERS(WISHED(c), LOST(c)) && COVERS(op[c], LOST(c)))

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
	:: d_step {
		st[c] == SEALING && COVERS(ssl[c], isr[c]) && CHOSEN(c) ->
		sealed(c)
	}
	:: d_step {
		st[c] == PREPARING && COVERS(got[c], nx[c]) ->
		propose(c, K_ACTIVATE, nx[c]);
		got[c] = 0;
		st[c] = ACTIVATING
	}
	:: d_step {
		st[c] == COMMITTING && COVERS(got[c], isr[c]) ->
		serve(c)
	}
	/* Requests (dispatch.go, settle). */
	:: d_step {
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
			if
#ifdef M_CLEAN_UNRECONCILED
			:: true ->
#else
			:: !dd[c] ->
#endif
				stb[c] = (fcov[c] > stb[c] -> fcov[c] : stb[c]);
				tell[c] = isr[c] | SYNCING(c)
			:: else
			fi;
			ff[c] = false; fdel[c] = false; ftg[c] = 0; fack[c] = 0; fcov[c] = 0; fsn[c] = 0
		:: else
		fi;
		check()
	}
	/* Eviction. */
	:: d_step {
		FREE(c) && EVICTABLE(c) ->
		begin_evict(c)
	}
	:: d_step {	/* called off, or begun again with fewer */
		ch[c] == C_EVICT && !ps[c] && (CALLED_OFF(c) || (WISHED(c) & nx[c])) ->
		ch[c] = 0; nx[c] = 0; got[c] = 0
	}
	:: d_step {
		ch[c] == C_EVICT && !ps[c] && COVERS(got[c], nx[c]) && !CALLED_OFF(c) && !(WISHED(c) & nx[c]) ->
		propose(c, K_EVICT, nx[c])
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
	/* Join (join.go): wait-mode; then nothing older is on the way to the joiner, then its flush, then the change (I18). */
	:: d_step {	/* beginStopSync */
		FREE(c) && jfail[c] ->
		forget_join(c)
	}
	:: d_step {
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
	:: d_step {
		ch[c] == C_JOINED && (COVERS(got[c], isr[c]) || WISHED(c)) ->
		wrote[c] = true;
		ch[c] = 0; got[c] = 0
	}
	/* Detach (change.go): one that may need an eviction waits for that. */
	:: d_step {
		ch[c] == C_DETACH && EVICTABLE(c) ->
		hd[c] = false;
		ch[c] = 0
	}
	od
}
