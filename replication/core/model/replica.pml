/* A replica: core.Replica, the storage below it, and what can happen to them. */

/* The session ends at the replica; what is in the kernel goes on (Replica.CloseSessions, ConnClosed). */
inline close_session(r) {
	rs[r] = 0;
	for (i : 0 .. 1) {
		if
		:: wst[X(i,r)] == 1 ->
#ifdef M_NO_SESSION_FENCE
			if
			:: !zq[r] -> zq[r] = wvl[X(i,r)] + 1
			:: else
			fi;
#endif
			wst[X(i,r)] = 0; wvl[X(i,r)] = 0; wtm[X(i,r)] = 0
		:: else
		fi;
		if
		:: cst[X(i,r)] -> cst[X(i,r)] = 0; cvl[X(i,r)] = 0; ctm[X(i,r)] = 0; cfua[X(i,r)] = 0
		:: else
		fi;
		if
		:: fst[X(i,r)] -> fst[X(i,r)] = 0
		:: else
		fi;
		if
		:: jst[X(i,r)] -> jst[X(i,r)] = 0
		:: else
		fi;
#ifdef M_NO_DRAIN
		if
		:: wst[X(i,r)] == 2 ->
			if
			:: !zq[r] -> zq[r] = wvl[X(i,r)] + 1
			:: else
			fi;
			wst[X(i,r)] = 0; wvl[X(i,r)] = 0; wtm[X(i,r)] = 0
		:: else
		fi;
#endif
	}
	skip
}

/* Replica.enter: the log before the write, and the maps. */
inline touch(r, seq) {
#ifndef M_NO_LOG
	al[r] = (al[r] > (seq) + 1 -> al[r] : (seq) + 1);
#endif
	mark(r)
}

inline mark(r) {		/* Replica.mark */
#ifndef M_MARK_FORGOTTEN
	dm[r] = dm[r] | miss[r]
#else
	skip
#endif
}

inline store(r, v) {
	val[r] = v;
	poss[r] = poss[r] | B(v)
}

inline stabilise(r) { poss[r] = B(val[r]) }

/* Replica.settle: numbers up to s are settled everywhere. A region leaves the log at once here, which is the worst case. */
inline settle(r, s) {
	rstab[r] = s;
	if
#ifdef M_JOINER_FORGETS_OLD
	:: true ->
#else
	:: isync[r] ->
#endif
		lossy[r] = false;
		if
		:: rstab[r] >= lostto[r] ->
			old[r] = false;
			if
			:: loglost[r] -> loglost[r] = false; sdm[r] = dm[r]
			:: else
			fi
		:: else
		fi;
#ifdef M_TELL_AGAIN_EARLY
		loglost[r] = false
#endif
	:: else
	fi;
	if
#ifdef M_RETIRE_UNSETTLED
	:: al[r] ->
#else
	:: al[r] && al[r] <= rstab[r] + 1 ->
#endif
		al[r] = 0
	:: else
	fi;
#ifndef M_RETIRE_UNSAVED
	sdm[r] = (ACTIVE(r) -> sdm[r] : dm[r])	/* I13: before it leaves */
#endif
}

inline new_term(r) {		/* Replica.newTerm */
#ifdef M_TERM_FORGETS_LOG
	old[r] = false;
#else
	old[r] = ACTIVE(r);
#endif
	al[r] = 0;
	rstab[r] = 0;
	lostto[r] = 0
}

/* Replica.performPrepare: members are added, none is dropped, for it may have been overtaken by the COMMIT of what it prepares. */
inline prepare(r, nm) {
	m = (nm) & ~miss[r];
#ifdef M_PREPARE_REPLACES
	dm[r] = dm[r] & (nm);
	miss[r] = nm;
#else
	miss[r] = miss[r] | (nm);
#endif
#ifdef M_JOINER_MAP_FROM_LOG
	dm[r] = dm[r] | (m & ~misr[r]);
#else
	dm[r] = dm[r] | (isync[r] -> m & ~misr[r] : m);
#endif
#ifndef M_NO_DIRTY_SNAPSHOT
	if
	:: LOGGED(r) -> dm[r] = dm[r] | (nm)
	:: else
	fi;
#endif
	sdm[r] = dm[r]
}

/* Replica.performCommit: exactly the maps of those that are not in sync; none if it is not in sync itself. */
inline commit(r, epoch, set) {
	mep[r] = epoch;
	misr[r] = set;
	isync[r] = HAS(set, r);
	if
	:: isync[r] ->
		m = ALL & ~(set);
#ifdef M_COMMIT_MAP_EMPTY
		dm[r] = dm[r] & m;
#else
		dm[r] = (dm[r] & m) | (m & ~miss[r]);
#endif
		miss[r] = m
	:: else ->
#ifndef M_MAP_OUTLIVES_SYNC
		dm[r] = 0; miss[r] = 0;
#endif
		skip
	fi;
	sdm[r] = dm[r]
}

inline settled(r) {		/* Replica.forgetAll, of a detach that flushed everything */
	al[r] = 0; old[r] = false; loglost[r] = false; lossy[r] = false
}

/* The process of the replica is gone, and a new one reads what is stored (NewReplica). */
inline gone(r) {
	close_session(r);
	up = up & ~B(r);
#ifdef M_WRITE_BEFORE_LOGGED
	old[r] = old[r] && !al[r];
#else
	old[r] = ACTIVE(r);
#endif
	al[r] = 0; rstab[r] = 0; lostto[r] = NEVER;
	dm[r] = (LOGGED(r) -> miss[r] : sdm[r]);
	sdm[r] = dm[r]
}

inline lose(r, v) {
	val[r] = v;
	poss[r] = B(v)
}
