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

/* Replica.touch: the log and the maps, before the write is submitted. */
inline touch(r, seq) {
	al[r] = (al[r] > (seq) + 1 -> al[r] : (seq) + 1);
	dm[r] = dm[r] | miss[r]
}

inline store(r, v) {
	val[r] = v;
	poss[r] = poss[r] | B(v)
}

inline stabilise(r) { poss[r] = B(val[r]) }

/* Replica.retired, Replica.newTerm. */
#define RETIRED(r)	(al[r] == 1 -> rstab[r] > 0 && rstab[r] >= lostto[r] : al[r] <= rstab[r] + 1)

inline retire(r) {
	if
	:: al[r] && RETIRED(r) -> al[r] = 0
	:: else
	fi
}

inline new_term(r) {
	al[r] = (al[r] -> 1 : 0);	/* what is retired is 0 already */
	rstab[r] = 0;
	lostto[r] = 0
}

/* Replica.setMissing: nm is the new set, all that is new in it and was not in sync is marked. */
inline prepare(r, nm) {		/* Replica.performPrepare */
	m = (nm) & ~miss[r];
	dm[r] = (dm[r] & (nm)) | (m & ~misr[r]);
	miss[r] = nm;
#ifndef M_NO_DIRTY_SNAPSHOT
	if
	:: LOGGED(r) -> dm[r] = dm[r] | (nm)
	:: else
	fi
#endif
}

inline commit(r, epoch, set) {	/* Replica.performCommit */
	mep[r] = epoch;
	misr[r] = set;
	isync[r] = HAS(set, r);
	if
	:: HAS(set, r) ->
		m2 = ALL & ~(set);
		dm[r] = (dm[r] & m2) | (m2 & ~miss[r]);
		miss[r] = m2
	:: else
	fi
}

inline settled(r) {		/* the same, of a detach that flushed everything */
	al[r] = 0; loglost[r] = false; lossy[r] = false
}

/* The process of the replica is gone; its log and its maps with it (backed.Stored, NewReplica). */
inline gone(r) {
	close_session(r);
	up = up & ~B(r);
	al[r] = 0; rstab[r] = 0; lostto[r] = NEVER;
	dm[r] = miss[r];
#ifndef M_LOG_LOST_FORGOTTEN
	loglost[r] = true
#endif
}

inline lose(r, v) {
	val[r] = v;
	poss[r] = B(v)
}
