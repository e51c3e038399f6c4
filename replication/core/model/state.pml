/* What there is: the kvdb's record, replicas, coordinators, the messages between them, and ghosts.
 * Sets of members are masks. One block, one region: its value is the number of the write that wrote it, 0 at first. */

#ifndef NREP
#define NREP 2		/* replicas */
#endif
#ifndef NW
#define NW 1		/* writes of the consumer */
#endif
#ifndef NATT
#define NATT 1		/* attachments */
#endif
#ifndef NDIE
#define NDIE 0		/* of them, killed */
#endif
#ifndef NCUT
#define NCUT 0		/* links cut */
#endif
#ifndef NKILL
#define NKILL 0		/* replica processes killed */
#endif
#ifndef NPOWER
#define NPOWER 0	/* power cuts of a replica */
#endif
#ifndef NFENCE
#define NFENCE 0	/* domains deactivated */
#endif
#ifndef NDETACH
#define NDETACH 0	/* orderly detaches */
#endif
#ifndef NOVERFLOW
#define NOVERFLOW 0		/* writes that find the activity log full of other regions */
#endif
#ifndef NFLUSH
#define NFLUSH 0	/* flushes at any time; more of them when nothing else can happen */
#endif
#ifndef NLATE
#define NLATE 0		/* control requests that arrive (again) late */
#endif

#define B(r)		(1 << (r))
#define HAS(m, r)	(((m) >> (r)) & 1)
#define COVERS(m, o)	(((m) & (o)) == (o))
#define ALL		(B(NREP) - 1)
#define X(c, r)		((c) * NREP + (r))
#define LINKS		(2 * NREP)
#define NEVER		255		/* a sequence number that no message has */

/* The kvdb's record of the volume, its revision is the epoch; and the domains. */
byte kepoch = 1, kterm, kcoord, kisr = ALL;	/* kcoord: 0 nobody, else 1 + coordinator */
byte kfenced;					/* mask of domains */
#define DOMAIN(r)	((r) == 0 -> 0 : 1)	/* of replica r; coordinator c is in domain c */
#define INSIDE(d)	((d) == 0 -> 1 : ALL & ~1)
#define FENCED(d)	HAS(kfenced, d)
#define MINE(c)		(kcoord == (c) + 1 && kterm == tm[c])

/* A compare-and-set of a coordinator (core.Change). It may outlive it. */
byte ps[2];		/* 0 none, 1 sent and of unknown outcome, 2 told that it is in force, 3 that it is not */
byte pk[2];		/* K_... */
byte pe[2], pis[2];	/* the revision that it is from, the in-sync set that it brings */
#define K_ACTIVATE	1
#define K_EVICT		2
#define K_JOIN		3

/* Replicas. Durable: */
byte val[NREP];		/* what a read returns */
byte poss[NREP];	/* values that a power cut may leave, as a mask: written since the last flush, and the one flushed */
byte term[NREP];
byte mep[NREP] = 1, misr[NREP] = ALL, miss[NREP];	/* epoch, in-sync set, missing members, as told */
bool isync[NREP] = true;	/* its state is IN_SYNC */
bool lossy[NREP];
bool old[NREP];		/* the region is in its activity log, since an earlier term or process */
bool loglost[NREP];	/* the log says that it does not tell */
byte sdm[NREP];		/* dirty maps, as stored */
/* Volatile, or made durable together with what depends on it: */
byte up = ALL;
byte rs[NREP];		/* session: 0 none, else 1 + coordinator */
byte al[NREP];		/* the region is in its log (durably, I11), since a write of this term: 1 + number of the last */
byte rstab[NREP];	/* all writes up to this number are settled */
byte lostto[NREP];	/* numbers up to this may have been used before this process */
#define ACTIVE(r)	(al[r] || old[r])
#define LOGGED(r)	(ACTIVE(r) || loglost[r])
byte dm[NREP];		/* dirty maps: the members that may lack the block */

/* Data messages from c to r: 0 none, 1 on the way, 2 in the kernel, 3 answer on the way. */
byte wst[LINKS], wvl[LINKS], wtm[LINKS];	/* write: value, term */
bool cst[LINKS];
byte cvl[LINKS], ctm[LINKS];	/* copy */
bool cfua[LINKS];
bool fst[LINKS];				/* flush */
bool jst[LINKS];				/* flush of the joiner before it joins */
#define IN_KERNEL(c, r)	(wst[X(c,r)] == 2)
#define DRAINED(r)	(!IN_KERNEL(0, r) && !IN_KERNEL(1, r))
byte cut;		/* links that are cut, by X */
#define REACH(c, r)	(HAS(up, r) && !HAS(cut, X(c,r)))
#define LIVE(c, r)	(HAS(op[c], r) && rs[r] == (c) + 1 && REACH(c, r))

/* Coordinators. */
byte st[2];
#define IDLE		0
#define SEALING		1
#define PREPARING	2
#define ACTIVATING	3
#define COMMITTING	4
#define SERVING		5
byte tm[2], ep[2], isr[2], op[2];	/* term, epoch, in-sync set, open sessions */
byte got[2], nx[2];			/* the round under way: who answered; the in-sync set that is aimed at */
byte ssl[2], slos[2], sact[2];		/* sealed; of them lossy; of them with an active log */
byte ch[2];				/* the change under way */
#define C_NONE		0
#define C_EVICT		1	/* members prepare; then the compare-and-set */
#define C_COMMIT	2	/* of an eviction */
#define C_RESTORE	3	/* of one that was called off */
#define C_JOIN		4	/* compare-and-set of a join */
#define C_JOINED	5	/* its commit */
#define C_DETACH	6	/* draining and flushing */
#define C_DETACHED	7	/* its commit */
byte evr[2], evd[2], evj[2], evl[2];	/* to be evicted; of them: domain closed, join failed while it was decided, lost power */
bool ha[2], hd[2];			/* acknowledgements are held; requests are held */
bool dd[2];				/* D: in-sync members may differ */
byte bk[2], bo[2];			/* boots known; of them, not any more the boot that the member has */
byte jq[2], js[2];			/* joiner, 1 + replica; how far it is */
#define J_SEALED	1
#define J_QUIESCE	2
#define J_TELL		3
#define J_CONNECT	4
#define J_COPY		5	/* mirrored from here on */
#define J_WAIT		6	/* wait-mode from here on */
#define J_FLUSH		7
#define J_FLUSHED	8
bool jtodo[2], jfail[2];
byte wv[2], wtg[2], wack[2];		/* the write in flight: value, targets, who applied it */
bool wdel[2];				/* it is acknowledged */
bool ff[2], fdel[2], wrote[2];		/* a flush in flight; acknowledged; something to flush */
byte ftg[2], fack[2], fcov[2];
byte stb[2], last[2];			/* all writes up to this number are settled; the last number used */
byte tell[2];				/* members that have not been told yet what the last flush settled */
byte cp[2], cpt[2], csrc[2];		/* copy under way: 1 to the joiner, 2 reconcile; who has not answered; source */
bool cpf[2];
#define J(c)		(B(jq[c]) >> 1)
#define SYNCING(c)	(js[c] >= J_COPY -> J(c) : 0)
#ifdef M_NO_WAIT_MODE
#define NEED(c)		(isr[c])
#else
#define NEED(c)		(isr[c] | (js[c] >= J_WAIT -> J(c) : 0))
#endif
#ifdef M_FLUSH_SKIPS_JOINER
#define FNEED(c)	(isr[c])
#else
#define FNEED(c)	NEED(c)
#endif
#define LOCAL(c, m)	(HAS(m, c) -> c : (HAS(m, 0) -> 0 : (HAS(m, 1) -> 1 : 2)))	/* Coordinator.prefer */
#define QUIET(c)	(!wv[c] && !ff[c])

/* Numbers: write v has number 2v, copies after it share 2v+1; the first number of a term is 1. */
#define SEQ(v)		(2 * (v))

/* A control request that arrives late: 0 none, 1 prepare, 2 commit. */
byte lk, lr, lt, le, lm;

#if defined(M_NO_DRAIN) || defined(M_NO_SESSION_FENCE)
byte zq[NREP];		/* a write of an old session that is still to land: 1 + value */
#endif

/* Ghosts: what no process sees. */
byte legal = 1;		/* values that a read may return, as a mask */
byte since = 1;		/* values that a power cut of everything may bring back */
byte fsn[2];		/* legal when the flush in flight was sent, and what was written since */
byte frep[2];		/* the in-sync set when it was replaced */
byte wap[2];		/* members that applied the write in flight */
byte gl;		/* members that lost power and have not been repaired */
byte nw, natt, ndie, ncut, nkill, npower, nfence, ndetach, noverflow, nflush, nlate;	/* used up */
hidden byte i, k, m, m2;

/* Names for the checker's messages: always 0. */
hidden byte I1_one_change_per_epoch, I2_somebody_stays, I3_acked_on_all_in_sync, I4_in_sync_has_acked, I5_flushed_is_stable,
	I6_no_old_term_applied, I7_sealed_means_no_new_ack, I12_difference_is_logged, I14_missing_is_marked, I19_lossy_left_out,
	I23_domain_guard, READ_of_acked, RPO_after_takeover, CONVERGENCE;
