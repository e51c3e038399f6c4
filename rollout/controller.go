package rollout

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
)

// DefaultEvery is how often is looked.
const DefaultEvery = 2 * time.Second

// lookTimeout bounds one look.
const lookTimeout = 20 * time.Second

// Options of a Controller. All but Every are required.
type Options struct {
	Kubernetes *Kubernetes
	// Tandem is asked for leave: any node of it.
	Tandem clusterdomainpb.ClusterClient
	Every  time.Duration
	Logger *zap.Logger
}

// Controller replaces the pods of tandemd that are of an old revision, while it leads.
type Controller struct {
	o     Options
	leads atomic.Bool
	said  string
}

// New returns a Controller that does not lead.
func New(o Options) *Controller {
	if o.Every == 0 {
		o.Every = DefaultEvery
	}
	return &Controller{o: o}
}

// Lead has the controller act, or stop acting. It may be called at any time.
func (c *Controller) Lead(yes bool) { c.leads.Store(yes) }

// Run looks until ctx ends.
func (c *Controller) Run(ctx context.Context) {
	tick := time.NewTicker(c.o.Every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if !c.leads.Load() {
			continue
		}
		waits, err := c.look(ctx)
		if ctx.Err() == nil {
			c.say(waits, err)
		}
	}
}

// say logs why nothing is done, when that changes.
func (c *Controller) say(waits string, err error) {
	text := waits
	if err != nil {
		text = err.Error()
	}
	switch {
	case text == c.said:
	case err != nil:
		c.o.Logger.Warn("update is not looked after", zap.Error(err))
	case text != "":
		c.o.Logger.Info("update waits", zap.String("reason", text))
	}
	c.said = text
}

// look looks once and deletes one pod, if one is to be. waits says why none was, though there are old ones.
func (c *Controller) look(ctx context.Context) (waits string, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	pods, missing, settled, err := c.o.Kubernetes.pods(ctx)
	if err != nil || !settled {
		return "", err
	}
	p := decide(pods, missing)
	for _, d := range p.dead {
		return "", c.replace(ctx, d)
	}
	if p.wait != "" {
		return p.wait, nil
	}
	var all []string
	for _, o := range p.old {
		why, err := c.ask(ctx, o.Node)
		switch {
		case err != nil:
			return "", err
		case why == "":
			return "", c.replace(ctx, o)
		}
		all = append(all, fmt.Sprintf("node %s: %s", o.Node, why))
	}
	return strings.Join(all, "; "), nil
}

// ask asks for leave to restart the tandemd of a node. why is "" if it was given.
func (c *Controller) ask(ctx context.Context, node string) (why string, err error) {
	resp, err := c.o.Tandem.PlanRestart(ctx, &clusterdomainpb.PlanRestartRequest{Node: node})
	switch {
	case status.Code(err) == codes.NotFound:
		return "", nil // Tandem never heard of it: it stores nothing
	case err != nil:
		return "", fmt.Errorf("ask Tandem for leave to restart node %s: %w", node, err)
	case !resp.GetGranted():
		return strings.Join(resp.GetWaits(), ", "), nil
	}
	return "", nil
}

func (c *Controller) replace(ctx context.Context, p Pod) error {
	if !c.leads.Load() {
		return nil
	}
	if err := c.o.Kubernetes.delete(ctx, p); err != nil {
		return err
	}
	c.o.Logger.Info("pod of an old revision is replaced", zap.String("pod", p.Name), zap.String("node", p.Node))
	return nil
}
