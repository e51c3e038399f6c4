package replication

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Protection says what happens to writes when a replica is out of reach.
type Protection string

// Protection modes.
const (
	MaxAvailability Protection = "max_availability" // evict it and go on, as far as Needs are met (default)
	MaxProtection   Protection = "max_protection"   // stall until it is back in sync
)

// Needs is what has to be in sync for a write to be acknowledged, beside the mode. The zero value asks for nothing. Nobody is
// evicted who may come back with everything while the rest would not meet it.
type Needs struct {
	InSync  int        `json:"in_sync,omitempty"` // so many replicas
	Domains []DomainID `json:"domains,omitempty"` // one replica in each; sorted
	// StallMs bounds how long writes wait for what the mode and these ask for, in milliseconds from when it was lost, or from a
	// takeover; then they go on without until it is back. 0: they wait for as long as it takes.
	StallMs int64 `json:"stall_ms,omitempty"`
}

// IsZero reports whether nothing is asked for.
func (n Needs) IsZero() bool { return n.InSync == 0 && len(n.Domains) == 0 && n.StallMs == 0 }

// Policy is all that protects a volume's writes.
type Policy struct {
	Protection Protection
	Needs
}

// Policy returns what protects the volume's writes. Its Domains must not be changed.
func (c *Config) Policy() Policy { return Policy{c.Protection, c.Needs} }

// SetPolicy makes p the policy, and the version the first that knows of it: who does not would forget it.
func (c *Config) SetPolicy(p Policy) {
	c.Protection, c.Needs = p.Protection, p.Needs
	c.Needs.Domains = slices.Clone(p.Domains)
	c.Version = ConfigVersion
	if p.Needs.IsZero() {
		c.Version = 1
	}
}

// ConfigVersion is the highest schema of Config. Version 1 has no Needs.
const ConfigVersion = 2

// Equal reports whether p and q ask for the same.
func (p Policy) Equal(q Policy) bool {
	return p.Protection == q.Protection && p.InSync == q.InSync && p.StallMs == q.StallMs && slices.Equal(p.Domains, q.Domains)
}

// ErrBadPolicy is what Validate wraps.
var ErrBadPolicy = errors.New("replication: no such protection")

// maxStall bounds Needs.StallMs.
const maxStall = 24 * time.Hour

// Validate reports ErrBadPolicy for what a volume with replicas in these domains, one entry for each replica, can never meet, or
// what makes no sense.
func (p Policy) Validate(domains []DomainID) error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrBadPolicy}, a...)...)
	}
	switch {
	case p.Protection != MaxAvailability && p.Protection != MaxProtection:
		return bad("%q, want %s or %s", p.Protection, MaxAvailability, MaxProtection)
	case p.InSync < 0 || p.InSync > len(domains):
		return bad("at least %d replicas in sync, of %d", p.InSync, len(domains))
	case p.StallMs < 0 || p.StallMs > maxStall.Milliseconds():
		return bad("writes that wait for %d ms, want 0 to %v", p.StallMs, maxStall)
	case p.StallMs > 0 && p.Protection == MaxAvailability && p.InSync == 0 && len(p.Domains) == 0:
		return bad("a time to wait, and nothing to wait for: it goes with max_protection, a number of replicas in sync, or domains")
	}
	for i, d := range p.Domains {
		switch {
		case !slices.Contains(domains, d):
			return bad("a replica in sync in domain %q, where the volume has none", d)
		case i > 0 && p.Domains[i-1] >= d:
			return bad("domains %q are not in order", p.Domains)
		}
	}
	return nil
}

// Met reports whether replicas in sync in these domains, one entry for each, are what p asks for. all are the domains of the volume's
// replicas.
func (p Policy) Met(inSync, all []DomainID) bool {
	missing := func(d DomainID) bool { return !slices.Contains(inSync, d) }
	return len(inSync) >= p.InSync && !slices.ContainsFunc(p.Domains, missing) &&
		(p.Protection != MaxProtection || !slices.ContainsFunc(all, missing))
}

// PolicyCause is what the history of a configuration says of a change of the policy that was made for reason, "" if none was given.
func PolicyCause(reason string) string {
	if reason == "" {
		return "protection"
	}
	return "protection: " + reason
}
