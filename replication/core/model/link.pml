/* What arrives at a replica, what its kernel does, and what befalls it. */

/* What arrives from coordinator c at replica r, and what its kernel does. */
proctype link(byte c, r) {
end:	do
	:: d_step {	/* Replica.Step */
		wst[X(c,r)] == 1 && REACH(c, r) && rs[r] == c + 1 ->
		touch(r, SEQ(wvl[X(c,r)]));
		wst[X(c,r)] = 2;
		check()
	}
	:: d_step {	/* the same, when the log is full of other regions and cannot wait: it is declared lost, durably, first */
		wst[X(c,r)] == 1 && REACH(c, r) && rs[r] == c + 1 && noverflow < NOVERFLOW && !ACTIVE(r) ->
		noverflow++;
		loglost[r] = true;
		lostto[r] = (lostto[r] > SEQ(wvl[X(c,r)]) -> lostto[r] : SEQ(wvl[X(c,r)]));
		mark(r);
		wst[X(c,r)] = 2;
		check()
	}
	:: d_step {	/* Replica.IODone */
		wst[X(c,r)] == 2 ->
		assert(I6(wtm[X(c,r)], r) || I6_no_old_term_applied);
		store(r, wvl[X(c,r)]);
		if
		:: st[c] == SERVING && wtm[X(c,r)] == tm[c] && wvl[X(c,r)] == wv[c] -> wap[c] = wap[c] | B(r)
		:: else
		fi;
		wst[X(c,r)] = 0; wvl[X(c,r)] = 0; wtm[X(c,r)] = 0;
		if
		:: HAS(op[c], r) && rs[r] == c + 1 && HAS(up, r) -> 
			if
			:: REACH(c, r) -> wack[c] = wack[c] | B(r)
			:: else -> wst[X(c,r)] = 3
			fi
		:: else
		fi;
		check()
	}
	:: d_step {	/* a copy; what its kernel does with it is as for a write */
		cst[X(c,r)] && REACH(c, r) && rs[r] == c + 1 ->
		assert(I6(ctm[X(c,r)], r) || I6_no_old_term_applied);
		if
		:: isync[r] -> touch(r, last[c])
		:: else -> mark(r)	/* a joiner logs no copies, see docs/design/0009 */
		fi;
		store(r, cvl[X(c,r)]);
#ifndef M_RECONCILE_NOT_STABLE
		poss[r] = (cfua[X(c,r)] -> B(val[r]) : poss[r]);
#endif
		cst[X(c,r)] = 0; cvl[X(c,r)] = 0; ctm[X(c,r)] = 0; cfua[X(c,r)] = 0;
		if
		:: HAS(op[c], r) -> copied(c, r)
		:: else
		fi;
		check()
	}
	:: d_step {	/* a flush: what was written before it was submitted; weaker than a device */
		fst[X(c,r)] && REACH(c, r) && rs[r] == c + 1 ->
		stabilise(r);
		fst[X(c,r)] = 0;
		fack[c] = (HAS(op[c], r) -> fack[c] | B(r) : fack[c])
	}
	:: d_step {	/* the joiner's: from here on it has everything */
		jst[X(c,r)] && REACH(c, r) && rs[r] == c + 1 ->
		stabilise(r);
		gl = gl & ~B(r);
		jst[X(c,r)] = 0;
		js[c] = (HAS(op[c], r) && js[c] == J_FLUSH -> J_FLUSHED : js[c])
	}
	:: d_step {	/* the transport tells the replica that the connection ended (ConnClosed), or the domain is closed */
		rs[r] == c + 1 && (!HAS(op[c], r) || HAS(cut, X(c,r)) || FENCED(c)) ->
		close_session(r)
	}
	od
}

proctype faults(byte r) {
end:	do
	:: d_step {
		HAS(up, r) && nkill < NKILL ->
		nkill++;
		gone(r);
		check()
	}
	:: atomic {	/* unflushed writes are lost arbitrarily */
		HAS(up, r) && npower < NPOWER ->
		d_step {
			npower++;
			gone(r);
			lossy[r] = true;
			gl = gl | B(r);
			bo[0] = bo[0] | (bk[0] & B(r));
			bo[1] = bo[1] | (bk[1] & B(r));
			for (i : 0 .. 1) {
				if
				:: wst[X(i,r)] == 2 ->
					poss[r] = poss[r] | B(wvl[X(i,r)]);
					wst[X(i,r)] = 0; wvl[X(i,r)] = 0; wtm[X(i,r)] = 0
				:: else
				fi
			}
		};
		if
		:: HAS(poss[r], 0) -> lose(r, 0)
		:: HAS(poss[r], 1) -> lose(r, 1)
		:: HAS(poss[r], 2) -> lose(r, 2)
		:: HAS(poss[r], 3) -> lose(r, 3)
		fi;
		d_step { check() }
	}
	:: d_step {
		!HAS(up, r) ->
		up = up | B(r)
	}
#if defined(M_NO_DRAIN) || defined(M_NO_SESSION_FENCE)
	:: d_step {	/* what belonged to an old session lands now */
		zq[r] ->
		touch(r, SEQ(zq[r] - 1));
		store(r, zq[r] - 1);
		zq[r] = 0;
		check()
	}
#endif
	od
}
