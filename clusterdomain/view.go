package clusterdomain

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
)

// View is what was known of the cluster at one moment. It is never changed.
type View struct {
	Local   string    // this node
	Domains []Domain  // by name
	Nodes   []Node    // by domain, then name; those that are offline too
	Read    time.Time // when it was read; old if the kvdb is out of reach
}

// Domain returns a domain by name.
func (v *View) Domain(name string) (Domain, bool) {
	i, ok := slices.BinarySearchFunc(v.Domains, name, func(d Domain, n string) int { return cmp.Compare(d.Name, n) })
	if !ok {
		return Domain{}, false
	}
	return v.Domains[i], true
}

// State is the state of a domain, "" if it is not known: nothing is attached or placed in that one, and
// nothing in it is stopped.
func (v *View) State(domain string) State {
	d, _ := v.Domain(domain)
	return d.State
}

// Node returns a node by name.
func (v *View) Node(name string) (Node, bool) {
	i := slices.IndexFunc(v.Nodes, func(n Node) bool { return n.Name == name })
	if i < 0 {
		return Node{}, false
	}
	return v.Nodes[i], true
}

// sameAs reports whether v tells nothing that old does not.
func (v *View) sameAs(old *View) bool {
	return reflect.DeepEqual(v.Domains, old.Domains) && reflect.DeepEqual(v.Nodes, old.Nodes)
}

// readView reads the cluster. Each kind of record is read linearizably, one after
// the other: domains last, so that a node in the view is of a domain in the view.
func readView(ctx context.Context, s kvdb.Store, cluster, local string) (*View, error) {
	known, err := readNodes(ctx, s, knownPrefix(cluster))
	if err != nil {
		return nil, err
	}
	live, err := readNodes(ctx, s, nodePrefix(cluster))
	if err != nil {
		return nil, err
	}
	v := &View{Local: local}
	for name, n := range live {
		n.Online = true
		known[name] = n
	}
	for _, n := range known {
		v.Nodes = append(v.Nodes, n)
	}
	slices.SortFunc(v.Nodes, func(a, b Node) int {
		return cmp.Or(cmp.Compare(a.Domain, b.Domain), cmp.Compare(a.Name, b.Name))
	})
	if v.Domains, err = readDomains(ctx, s, cluster); err != nil {
		return nil, err
	}
	v.Read = time.Now()
	return v, nil
}

func readNodes(ctx context.Context, s kvdb.Store, prefix string) (map[string]Node, error) {
	kvs, _, err := s.List(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("read nodes: %w", err)
	}
	m := make(map[string]Node, len(kvs))
	for _, kv := range kvs {
		var n Node
		if err := json.Unmarshal(kv.Value, &n); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
		}
		m[strings.TrimPrefix(kv.Key, prefix)] = n
	}
	return m, nil
}

// readDomains returns all domains, by name.
func readDomains(ctx context.Context, s kvdb.Store, cluster string) ([]Domain, error) {
	kvs, _, err := s.List(ctx, domainPrefix(cluster))
	if err != nil {
		return nil, fmt.Errorf("read domains: %w", err)
	}
	ds := make([]Domain, 0, len(kvs))
	for _, kv := range kvs {
		d, err := ParseDomain(kv)
		if err != nil {
			return nil, err
		}
		ds = append(ds, d)
	}
	return ds, nil
}
