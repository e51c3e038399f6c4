package nodeloss

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Defaults of Options.
const (
	DefaultGrace = 15 * time.Second // kubelets renew their leases every 10 s
	DefaultEvery = time.Second
)

// Options of a Controller. Kubernetes, Tandem and Logger are required.
type Options struct {
	Kubernetes *Kubernetes
	Tandem     *Tandem
	Grace      time.Duration // how long a kubelet has to be silent
	Every      time.Duration // how often is looked
	// Done is told of each action that was taken. May be nil.
	Done   func(Action)
	Logger *zap.Logger
}

// Controller looks for lost nodes. Several may run; those that do not lead look too, so that the next leader knows who has been silent for how long.
type Controller struct {
	o       Options
	leads   atomic.Bool
	silent  silences
	marked  bool // a node is, or may be
	failing string
}

// New returns a Controller that does not lead.
func New(o Options) *Controller {
	if o.Grace == 0 {
		o.Grace = DefaultGrace
	}
	if o.Every == 0 {
		o.Every = DefaultEvery
	}
	if o.Done == nil {
		o.Done = func(Action) {}
	}
	return &Controller{o: o, marked: true}
}

// Lead has the controller act, or stop acting. It may be called at any time.
func (c *Controller) Lead(yes bool) { c.leads.Store(yes) }

// Run looks until ctx ends.
func (c *Controller) Run(ctx context.Context) {
	tick := time.NewTicker(c.o.Every)
	defer tick.Stop()
	for {
		err := c.look(ctx, time.Now())
		if ctx.Err() != nil {
			return
		}
		c.note(err)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// note logs an error when it comes and when it changes.
func (c *Controller) note(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	switch {
	case text == c.failing:
	case text == "":
		c.o.Logger.Info("nodes are looked after again")
	default:
		c.o.Logger.Warn("nodes are not looked after", zap.Error(err))
	}
	c.failing = text
}

// look looks once and does what is to be done. Nothing is read of Kubernetes but the leases of the kubelets as long as all nodes of Tandem are there.
func (c *Controller) look(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, unseen)
	defer cancel()
	renewed, err := c.o.Kubernetes.renewals(ctx)
	if err != nil {
		return err
	}
	silent := c.silent.see(now, renewed)
	if !c.leads.Load() {
		c.marked = true // whoever leads may mark some
		return nil
	}
	w := &World{}
	if w.Online, err = c.o.Tandem.online(ctx); err != nil {
		return err
	}
	allThere := true
	for _, there := range w.Online {
		allThere = allThere && there
	}
	if allThere && !c.marked {
		return nil
	}
	if w.Nodes, err = c.o.Kubernetes.nodes(ctx, silent); err != nil {
		return err
	}
	c.marked = slices.ContainsFunc(w.Nodes, func(n Node) bool { return n.Marked })
	var lost []string
	for _, n := range w.Nodes {
		if w.lost(n, c.o.Grace) {
			lost = append(lost, n.Name)
		}
	}
	if lost != nil {
		if w.Pods, err = c.o.Kubernetes.pods(ctx, lost); err != nil {
			return err
		}
		if w.Volumes, err = c.o.Tandem.list(ctx); err != nil {
			return err
		}
	}
	return c.act(ctx, Decide(w, c.o.Grace))
}

// act does all of it; what fails keeps nothing else from being done, and is tried again with the next look.
func (c *Controller) act(ctx context.Context, all []Action) error {
	var errs []error
	for _, a := range all {
		if !c.leads.Load() {
			return errors.Join(errs...)
		}
		if err := c.o.Kubernetes.apply(ctx, a); err != nil {
			errs = append(errs, err)
			continue
		}
		c.marked = c.marked || a.Kind == Mark
		c.o.Logger.Info("node is lost or back", zap.Stringer("action", a))
		c.o.Done(a)
	}
	return errors.Join(errs...)
}

// String says what is done.
func (a Action) String() string {
	switch a.Kind {
	case Mark:
		return "node " + a.Node + " is lost: no pods are put on it"
	case Unmark:
		return "node " + a.Node + " is back"
	case Delete:
		return fmt.Sprintf("pod %s/%s of the lost node %s is deleted: its volumes can be attached elsewhere", a.Pod.Namespace, a.Pod.Name, a.Node)
	default:
		return "volumes that the lost node " + a.Node + " had mounted are given free"
	}
}
