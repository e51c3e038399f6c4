/* Coordinator c and its member r: sessions, control requests, answers, copies' ends. */

/* The in-sync set without those to be evicted (Coordinator.wished: somebody always stays, the mildest reason). */
#define ASKED(c)	(evr[c] & isr[c])
#define WORSE(c)	(evd[c] | evj[c] | evl[c])	/* than suspected: not pardoned by a session */
#ifdef M_EVICT_ALL
#define WISHED(c)	ASKED(c)
#else
#define WISHED(c)	(ASKED(c) != isr[c] -> ASKED(c) : ((ASKED(c) & ~WORSE(c)) -> (ASKED(c) & WORSE(c)) : ((ASKED(c) & ~evl[c]) -> (ASKED(c) & evl[c]) : 0)))
#endif
#define STARTING(c)	(js[c] >= J_QUIESCE && js[c] <= J_CONNECT)
#define FREE(c)		(st[c] == SERVING && !ch[c] && !STARTING(c))

/* A session that nobody uses and that has nothing on the way is as good as closed. */
inline tidy(c, r) {
	if
	:: rs[r] == c + 1 && !HAS(op[c], r) && wst[X(c,r)] != 1 && !cst[X(c,r)] && !fst[X(c,r)] && !jst[X(c,r)] -> rs[r] = 0
	:: else
	fi
}

/* Coordinator.endJob, of a job with no open request. */
inline copy_step(c) {
	if
	:: cp[c] && !cpt[c] ->
		if
		:: cpf[c]
		:: !cpf[c] && cp[c] == 1 -> jtodo[c] = false
		:: !cpf[c] && cp[c] == 2 -> dd[c] = false; wrote[c] = true
		fi;
		cp[c] = 0; cpf[c] = false; csrc[c] = 0
	:: else
	fi
}

inline copied(c, r) {
	cpt[c] = cpt[c] & ~B(r);
	copy_step(c)
}

/* Coordinator.sessionLost, failRequests. */
inline session_lost(c, r) {
	op[c] = op[c] & ~B(r);
	wst[X(c,r)] = (wst[X(c,r)] == 3 -> 0 : wst[X(c,r)]);
	if
	:: cp[c] && (HAS(cpt[c], r) || csrc[c] == r) ->
		cpf[c] = true;
		cpt[c] = cpt[c] & ~B(r);
		copy_step(c)
	:: else
	fi;
	if
	:: jq[c] == r + 1 && js[c] >= J_COPY -> jfail[c] = true
	:: else
	fi;
	tidy(c, r)
}

/* Coordinator.forgetJoin. */
inline forget_join(c) {
	k = jq[c] - 1;
	bk[c] = bk[c] & ~B(k); bo[c] = bo[c] & ~B(k);
	session_lost(c, k);
	tell[c] = tell[c] & ~B(k);
	jq[c] = 0; js[c] = 0; jtodo[c] = false; jfail[c] = false; hd[c] = false
}

/* The coordinator ends: killed, deposed, poisoned (Coordinator.die). What it sent stays on the way. */
inline die(c) {
	cp[c] = 0; cpt[c] = 0; csrc[c] = 0; cpf[c] = false;
	jq[c] = 0; js[c] = 0; jtodo[c] = false; jfail[c] = false;
	op[c] = 0;
	for (k : 0 .. NREP - 1) {
		wst[X(c,k)] = (wst[X(c,k)] == 3 -> 0 : wst[X(c,k)]);
		tidy(c, k)
	}
	st[c] = IDLE; tm[c] = 0; ep[c] = 0; isr[c] = 0; got[c] = 0; nx[c] = 0;
	ssl[c] = 0; slos[c] = 0; sact[c] = 0; ch[c] = 0; frep[c] = 0; evr[c] = 0; evd[c] = 0; evj[c] = 0; evl[c] = 0;
	ha[c] = false; hd[c] = false; dd[c] = false; bk[c] = 0; bo[c] = 0;
	wv[c] = 0; wtg[c] = 0; wack[c] = 0; wdel[c] = false; wap[c] = 0;
	ff[c] = false; fdel[c] = false; wrote[c] = false; ftg[c] = 0; fack[c] = 0; fcov[c] = 0; fsn[c] = 0;
	stb[c] = 0; last[c] = 0; tell[c] = 0;
	if
	:: ps[c] != 1 -> ps[c] = 0; pk[c] = 0; pe[c] = 0; pis[c] = 0
	:: else
	fi
}

/* Replica.sealStatus; the session ends and its I/O leaves the kernel before the answer (I17). */
#define MAY_SEAL(c, r)	(REACH(c, r) && !FENCED(c) && tm[c] >= term[r] && ep[c] >= mep[r])
#ifdef M_NO_DRAIN
#define SETTLED(r)	true
#else
#define SETTLED(r)	DRAINED(r)
#endif

inline seal(c, r) {	/* Replica.performSeal */
#ifndef M_NO_FENCE
	close_session(r);
#endif
	if
	:: tm[c] != term[r] -> new_term(r)
	:: else
	fi;
	term[r] = tm[c];
	sdm[r] = dm[r];
	bk[c] = bk[c] | B(r); bo[c] = bo[c] & ~B(r)
}

inline resend(c, r) {	/* Coordinator.resend */
	if
	:: wv[c] && HAS(wtg[c], r) && !HAS(wack[c], r) -> wst[X(c,r)] = 1; wvl[X(c,r)] = wv[c]; wtm[X(c,r)] = tm[c]
	:: else
	fi;
	if
	:: ff[c] && HAS(ftg[c], r) && !HAS(fack[c], r) -> fst[X(c,r)] = true
	:: else
	fi
}

inline open_session(c, r) {	/* Replica.performHello, Coordinator.SessionUp */
	close_session(r);
	rs[r] = c + 1;
	op[c] = op[c] | B(r);
	tell[c] = (stb[c] > rstab[r] -> tell[c] | B(r) : tell[c]);
	evr[c] = evr[c] & ~(B(r) & ~WORSE(c))	/* pardon(suspected) */;
	lostto[r] = (lostto[r] == NEVER -> last[c] : lostto[r]);
#ifndef M_NO_RESEND
	resend(c, r)
#endif
}

/* With a configuration: what it lost is repaired (by the time that it is in sync) or decided against, unless it lost power
 * again since it was sealed. The core does without this, and waits for what is settled: see README.md, flaws. */
inline not_lossy(c, r) {
#ifdef M_LOSSY_KEPT
	skip
#else
	lossy[r] = lossy[r] && HAS(bo[c], r)
#endif
}

/* The members that the survivors are to mark for. */
#ifdef M_MISSING_AS_DELTA
#define MISSING(c)	(isr[c] & ~nx[c])
#else
#define MISSING(c)	(ALL & ~nx[c])
#endif
#define PREPARES(c)	(st[c] == PREPARING || ch[c] == C_EVICT)
#define COMMITS(c)	(st[c] == COMMITTING || ch[c] == C_COMMIT || ch[c] == C_RESTORE || ch[c] == C_JOINED || ch[c] == C_DETACHED)
#define MAY_SESSION(c, r)	(REACH(c, r) && !FENCED(c) && term[r] == tm[c] && SETTLED(r) && !HAS(op[c], r))

proctype member(byte c, r) {
end:	do
	/* Takeover: seal, prepare, commit (takeover.go). A request of an eviction or a join is the same. */
	:: d_step {
		st[c] == SEALING && HAS(isr[c], r) && !HAS(ssl[c], r) && MAY_SEAL(c, r) && SETTLED(r) ->
		seal(c, r);
		ssl[c] = ssl[c] | B(r);
		if
		:: lossy[r] -> slos[c] = slos[c] | B(r)
		:: else
		fi;
		if
		:: LOGGED(r) -> sact[c] = sact[c] | B(r)
		:: else
		fi;
		check()
	}
	:: d_step {	/* it has to wait for the kernel: the session ends at once */
		(st[c] == SEALING && HAS(isr[c], r) && !HAS(ssl[c], r) || FREE(c) && !HAS(isr[c], r) && !jq[c]) &&
			MAY_SEAL(c, r) && !SETTLED(r) && rs[r] ->
		close_session(r)
	}
	:: d_step {
		PREPARES(c) && HAS(nx[c], r) && !HAS(got[c], r) && REACH(c, r) && term[r] == tm[c] ->
		prepare(r, MISSING(c) & ~B(r));
		got[c] = got[c] | B(r);
		check()
	}
	:: d_step {
		COMMITS(c) && HAS(isr[c], r) && !HAS(got[c], r) && REACH(c, r) && term[r] == tm[c] && ep[c] >= mep[r] ->
		commit(r, ep[c], isr[c]);
		not_lossy(c, r);
		if
		:: ch[c] == C_DETACHED && !dd[c] -> settled(r)
		:: else
		fi;
		got[c] = got[c] | B(r);
		check()
	}
	:: d_step {	/* the same request, which arrives later or again */
		nlate < NLATE && !lk && HAS(nx[c], r) && PREPARES(c) ->
		nlate++;
		lk = 1; lr = r; lt = tm[c]; lm = MISSING(c) & ~B(r)
	}
	:: d_step {
		nlate < NLATE && !lk && HAS(isr[c], r) && COMMITS(c) && ch[c] != C_DETACHED ->
		nlate++;
		lk = 2; lr = r; lt = tm[c]; le = ep[c]; lm = isr[c]
	}
	/* Sessions (session.go). */
	:: d_step {
		st[c] == SERVING && HAS(isr[c], r) && MAY_SESSION(c, r) &&
#ifndef M_REOPEN_LOSSY
			!HAS(bo[c], r) &&
#endif
			!FENCED(DOMAIN(r)) ->
		open_session(c, r)
	}
	:: d_step {	/* Coordinator.lostPower */
		st[c] == SERVING && HAS(isr[c], r) && MAY_SESSION(c, r) && HAS(bo[c], r) &&
#ifdef M_REOPEN_LOSSY
			false &&
#endif
			(!HAS(evl[c], r) || COVERS(evr[c] & evl[c], isr[c])) ->
		evr[c] = evr[c] | B(r); evl[c] = evl[c] | B(r);
		if
		:: COVERS(evr[c] & evl[c], isr[c]) -> die(c)	/* poisoned */
		:: else
		fi
	}
	:: d_step {
		HAS(op[c], r) && (rs[r] != c + 1 || HAS(cut, X(c,r))) ->
		session_lost(c, r)
	}
	:: d_step {	/* suspected, after the suspect timeout */
		st[c] == SERVING && HAS(isr[c], r) && !HAS(op[c], r) && !HAS(evr[c], r) && !REACH(c, r) ->
		evr[c] = evr[c] | B(r)
	}
	:: d_step {	/* Coordinator.SetUsable */
		st[c] == SERVING && HAS(isr[c], r) && FENCED(DOMAIN(r)) && !HAS(evd[c], r) ->
		evr[c] = evr[c] | B(r); evd[c] = evd[c] | B(r)
	}
	:: d_step {
		HAS(evd[c], r) && !FENCED(DOMAIN(r)) ->
		evd[c] = evd[c] & ~B(r);
		evr[c] = evr[c] & ~(B(r) & ~WORSE(c))
	}
	/* An answer that the cut link held up (Coordinator.answer); the others arrive at once. */
	:: d_step {
		wst[X(c,r)] == 3 && HAS(op[c], r) && REACH(c, r) ->
		wst[X(c,r)] = 0;
		wack[c] = wack[c] | B(r)
	}
#ifdef M_FENCED_IS_ACK
	:: d_step {	/* a refusal by a member that promised a later term is taken for an answer */
		wv[c] && HAS(wtg[c], r) && !HAS(wack[c], r) && term[r] > tm[c] && REACH(c, r) ->
		wack[c] = wack[c] | B(r)
	}
#endif
	/* What is settled everywhere (StableSeq of any message; I13, I19). */
	:: d_step {
		LIVE(c, r) && HAS(tell[c], r) ->
		tell[c] = tell[c] & ~B(r);
		settle(r, stb[c]);
		check()
	}
	/* Join (join.go). */
	:: d_step {	/* beginJoin */
		FREE(c) && !jq[c] && !ha[c] && !dd[c] && !HAS(isr[c], r) && !FENCED(DOMAIN(r)) && MAY_SEAL(c, r) && SETTLED(r) ->
		seal(c, r);
		jq[c] = r + 1; js[c] = J_SEALED;
#ifndef M_IGNORE_PEER_LOG
		jtodo[c] = LOGGED(r);
#endif
		check()
	}
	:: d_step {	/* tellJoiner: the configuration, then the maps that it is to keep for others */
		js[c] == J_TELL && jq[c] == r + 1 && REACH(c, r) && term[r] == tm[c] && ep[c] >= mep[r] ->
		commit(r, ep[c], isr[c]);
		not_lossy(c, r);
		prepare(r, ALL & ~(isr[c] | B(r)));
		dm[r] = dm[r] | (ALL & ~(isr[c] | B(r)));
		js[c] = J_CONNECT;
		check()
	}
	:: d_step {	/* mirrored from here on; the in-sync members go on marking until it joins */
		js[c] == J_CONNECT && jq[c] == r + 1 && MAY_SESSION(c, r) && !HAS(bo[c], r) ->
		open_session(c, r);
		js[c] = J_COPY;
		hd[c] = false
	}
	:: d_step {	/* a link other than that within the node */
		ncut < NCUT && c != r && !HAS(cut, X(c,r)) ->
		ncut++;
		cut = cut | B(X(c,r))
	}
	:: d_step {
		HAS(cut, X(c,r)) ->
		cut = cut & ~B(X(c,r))
	}
	od
}
