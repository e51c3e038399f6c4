package blocktest

import (
	"sync"

	"github.com/tandem-storage/tandem/datapath/block"
)

// Rule says which requests fail and how. The zero fields match everything, so
// Rule{Err: block.ErrIO} fails all from now on.
type Rule struct {
	Op       block.Op // 0 is any
	Off, Len int64    // requests that touch this range, bytes; Len 0 is anywhere. A flush touches nothing.
	After    int      // let so many matching requests pass first
	Times    int      // fail so many; 0 is all
	Err      error    // block.ErrIO, block.ErrNoSpace, ...
	Apply    bool     // carry the request out all the same and then report Err
}

func (u *Rule) matches(r *block.Request) bool {
	if u.Op != 0 && u.Op != r.Op {
		return false
	}
	return u.Len == 0 || r.Off < u.Off+u.Len && u.Off < r.Off+r.Len
}

// Inject is a filter that fails requests by rules. Malformed requests are not
// matched. Without rules it changes nothing.
type Inject struct {
	block.Device

	mu    sync.Mutex
	rules []*injectRule
}

type injectRule struct {
	Rule
	seen, fired int
}

// NewInject puts a fault injector over d.
func NewInject(d block.Device) *Inject { return &Inject{Device: d} }

// Add adds a rule behind the others; the first that matches and is due decides.
// The returned function tells how often it has fired.
func (i *Inject) Add(u Rule) (fired func() int) {
	if u.Err == nil {
		panic("blocktest: rule without an error")
	}
	ir := &injectRule{Rule: u}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rules = append(i.rules, ir)
	return func() int {
		i.mu.Lock()
		defer i.mu.Unlock()
		return ir.fired
	}
}

// Clear removes all rules.
func (i *Inject) Clear() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rules = nil
}

// Submit implements block.Device.
func (i *Inject) Submit(batch []*block.Request) {
	info := i.Info()
	pass := make([]*block.Request, 0, len(batch))
	for _, r := range batch {
		switch u := i.decide(r, info); {
		case u == nil:
			pass = append(pass, r)
		case u.Apply:
			pass = append(pass, &hooked(r, func(_ *block.Request, err error) {
				if err == nil {
					err = refuse(r, u.Err)
				}
				r.By.Complete(r, err)
			}).Request)
		default:
			r.By.Complete(r, refuse(r, u.Err))
		}
	}
	if len(pass) > 0 {
		i.Device.Submit(pass)
	}
}

func (i *Inject) decide(r *block.Request, info block.Info) *Rule {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.rules) == 0 || r.Check(info) != nil {
		return nil
	}
	for _, u := range i.rules {
		if !u.matches(r) {
			continue
		}
		if u.seen++; u.seen <= u.After || u.Times > 0 && u.fired == u.Times {
			continue
		}
		u.fired++
		return &u.Rule
	}
	return nil
}

// hook is a copy of a request that goes down in its place and tells somebody
// else of its completion.
type hook struct{ block.Request }

func hooked(r *block.Request, done block.CompleterFunc) *hook {
	h := &hook{*r}
	h.By = done
	return h
}
