/* The invariants of docs/design/protocol.md section 4, as far as the model has what they speak of. */

#define IN(r)		HAS(kisr, r)

/* I4: who is in sync and did not lose power holds every acknowledged write, or a later one. */
#define I4(r)		(!IN(r) || HAS(gl, r) || HAS(legal, val[r]))
/* I5: whatever a power cut leaves of it, an in-sync member holds what was flushed, or something later. */
#define I5(r)		(!IN(r) || !(poss[r] & ~since))
/* I6: nothing of a term older than the one promised is applied. (NO_I6: to see what a mutation of that leads to.) */
#ifdef NO_I6
#define I6(t, r)	true
#else
#define I6(t, r)	((t) >= term[r])
#endif
/* I12: in-sync members differ only where one of their logs says so. */
#define I12(a, b)	(!IN(a) || !IN(b) || val[a] == val[b] || LOGGED(a) || LOGGED(b))
/* I14: what q lacks is marked at every in-sync member, or in their logs, or in q's. */
#define I14(q, a)	(IN(q) || !IN(a) || val[q] == val[a] || HAS(dm[a], q) || LOGGED(a) || LOGGED(q))
/* I23c: while a domain is deactivated, somebody outside it is in sync. */
#define I23(d)		(!FENCED(d) || (kisr & ~INSIDE(d)))

inline check() {
	assert(kisr || I2_somebody_stays);
	assert((I4(0) && I4(1)) || I4_in_sync_has_acked);
	assert((I5(0) && I5(1)) || I5_flushed_is_stable);
	assert(I12(0, 1) || I12_difference_is_logged);
	assert((I14(0, 1) && I14(1, 0)) || I14_missing_is_marked);
#if NREP == 3
	assert(I4(2) || I4_in_sync_has_acked);
	assert(I5(2) || I5_flushed_is_stable);
	assert((I12(0, 2) && I12(1, 2)) || I12_difference_is_logged);
	assert((I14(0, 2) && I14(2, 0) && I14(1, 2) && I14(2, 1)) || I14_missing_is_marked);
#endif
	assert((I23(0) && I23(1)) || I23_domain_guard)
}

/* The consumer is told that c's write is done. The set that counts is the one in force, or the one when c was replaced: an
 * old coordinator may deliver what every member had applied before it was sealed (G3). Values are numbered as they were written. */
#define IN_FORCE(c)	(MINE(c) -> kisr : frep[c])

inline acked(c) {
	for (i : 0 .. NREP - 1) {
		assert(!HAS(IN_FORCE(c), i) || term[i] <= tm[c] || HAS(wap[c], i) || I7_sealed_means_no_new_ack)
	}
	assert(!(IN_FORCE(c) & ~wap[c]) || I3_acked_on_all_in_sync);
	legal = legal & ~(B(wv[c]) - 1)
}

/* The consumer is told that c's flush is done. */
inline flushed(c) {
	since = since & fsn[c]
}

/* A read returned x: what else was possible has been decided against. */
inline was_read(x) {
	assert(HAS(legal, x) || READ_of_acked);
	legal = B(x);
	since = since & (B((x) + 1) - 1)
}
