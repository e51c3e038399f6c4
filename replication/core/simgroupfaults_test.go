package core

import "github.com/tandem-storage/tandem/replication"

// What happens to a groupWorld.

// breaks does one random thing to the world.
func (w *groupWorld) breaks() {
	v := w.vols[w.rng.IntN(len(w.vols))]
	switch k := w.rng.IntN(16); {
	case k < 3: // the link between the sites, for all
		up := w.rng.IntN(2) == 0
		for _, u := range w.vols {
			w.after(w.rng.Int64N(4e9), func() { u.setFar(up) })
		}
	case k < 6:
		v.setFar(!v.far)
	case k < 8 && v.c != nil:
		v.crash()
		w.after(2e9, func() {
			w.issue()
			v.back()
		})
	case k < 9 && v.c != nil && v.io == nil:
		v.c.Detach(w.now)
		v.drain()
		w.after(6e9, v.back)
	case k < 10 && v.c != nil: // the domain is taken out of service by plan, and comes back
		v.c.SetKept(w.now, 1, false)
		v.drain()
		v.later(6e9, func(now int64) { v.c.SetKept(now, 1, true) })
	case k < 11:
		w.outage = w.now + w.rng.Int64N(8e9)
	case k < 12:
		w.slow = []int64{0, 50e6, 3e9}[w.rng.IntN(3)]
	case k < 14 && v.c != nil:
		v.handOver()
	case k < 15 && v.c != nil:
		v.c.SetPolicy(w.now, 1, w.drawPolicy(), 0, "")
		v.drain()
	default:
		w.lazy = !w.lazy && w.rng.IntN(3) == 0
	}
}

// drawPolicy draws a protection: none, or one that wants domain b, for a time or for as long as it takes.
func (w *groupWorld) drawPolicy() replication.Policy {
	p := replication.Policy{Protection: replication.MaxAvailability}
	switch w.rng.IntN(4) {
	case 0:
		p.Protection = replication.MaxProtection
	case 1:
		p.InSync = 2
	default:
		return p
	}
	p.StallMs = []int64{0, 500, 6000, 20000}[w.rng.IntN(4)]
	return p
}

// heals mends everything: the group is linked, and the consumer served.
func (w *groupWorld) heals() {
	w.run(w.now + 6e9) // what is under way
	w.outage, w.slow, w.lazy = 0, 0, false
	for _, v := range w.vols {
		v.setFar(true)
		if v.c != nil {
			v.c.SetKept(w.now, 1, true)
			v.drain()
		}
	}
	for range 60 { // keepers look again by and by, whether they were woken or not
		w.run(w.now + 2e9)
		for _, v := range w.vols {
			v.back()
			w.wake(v)
		}
	}
	before := w.acked
	w.run(w.now + 10e9)
	if w.acked == before || w.record.State() != replication.Linked {
		w.fail("everything is mended, %d writes were acknowledged, the group is %s: %+v", w.acked-before, w.record.State(), w.record.Splits)
	}
}

// back attaches a volume again that is not, or not any more.
func (v *groupVol) back() {
	if v.c == nil || v.c.Dead() != nil {
		v.tending = false // whoever looked after the one that is dead hears of it no more
		v.attach()
	}
}

func (v *groupVol) setFar(up bool) {
	v.far = up
	if v.c == nil {
		return
	}
	if up || v.w.rng.IntN(2) == 0 { // the connection is reset, if not by now then by what was lost
		v.c.SessionDown(v.w.now, 1, v.c.m[1].sess)
	}
	v.c.SetUp(v.w.now, 1, up)
	v.drain()
}

// handOver gives the volume to another attachment, which comes soon, or late; or the one before takes it back, or neither.
func (v *groupVol) handOver() {
	v.c.HandOver(v.w.now, replication.Coord{Node: "a", Domain: "a", Boot: replication.BootID{1}, AttachID: replication.AttachID(v.w.uuid())})
	v.drain()
	v.later(4e9, func(now int64) { v.c.Keep(now, errNotHandedOver) })
}

// follow goes on with a volume that was handed over. What was held is asked for again.
func (v *groupVol) follow() {
	w := v.w
	how := Options{Attach: v.cfg.Coord.AttachID}
	if w.rng.IntN(4) == 0 {
		how = Options{Attach: v.by, TakeBack: true}
	}
	w.handovers++
	v.crash()
	w.after(w.pace, w.issue)
	life := v.life
	w.after([]int64{10e6, 3e9, 30e9}[w.rng.IntN(3)], func() {
		if v.life == life {
			v.start(how)
		}
	})
}

// kept asserts that what is acknowledged is where the volume's protection wants it to be, except after its time.
func (v *groupVol) kept() {
	p, c := v.cfg.Policy(), v.c
	var in []replication.DomainID
	for _, r := range v.cfg.ISR {
		in = append(in, v.cfg.Members[r].Domain)
	}
	if p.Protection == replication.MaxProtection || p.InSync > 1 {
		v.w.waited++
	}
	if !p.Met(in, []replication.DomainID{"a", "b"}) && (p.StallMs == 0 || !c.policy.lapsed || c.now-c.policy.unmet < p.StallMs*1e6) {
		v.w.fail("acknowledged with %v in sync, protection %+v", in, p)
	}
}
