package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// loseAgain kills the site where the application runs, again and again: the other one takes over by itself, and the dead one is
// back in sync before the next loss.
func (s *story) loseAgain(ctx context.Context) error {
	for i := range s.failovers {
		s.say("loss %d of %d", i+1, s.failovers)
		if err := s.disaster(ctx); err != nil {
			return err
		}
		if s.lost > 0 {
			return nil // tell tells
		}
		if err := s.rejoin(ctx); err != nil {
			return err
		}
		if err := s.c.Died(); err != nil {
			return err
		}
	}
	return s.w.stop()
}

// moveAgain moves the volume between the sites by plan, again and again, under the application, whose clients get no error.
func (s *story) moveAgain(ctx context.Context) error {
	w, ok := s.w.(*pgWorkload)
	if !ok {
		return errors.New("only PostgreSQL can be moved under")
	}
	for i := range s.moves {
		before := w.confirmed()
		out, err := s.c.Ctl(ctx, s.home(), "--timeout", "1m", "-o", "json", "cluster", "domains", "switchover",
			"--to", s.place[1-s.at].site, "--volume", volumeName, "--reason", "demo")
		if err != nil {
			return err
		}
		var moved struct {
			Moves []struct {
				Done bool   `json:"done"`
				Path string `json:"path"`
				Hold int64  `json:"hold_us,string"`
				Text string `json:"text"`
			} `json:"moves"`
		}
		if err := json.Unmarshal([]byte(out), &moved); err != nil || len(moved.Moves) != 1 || !moved.Moves[0].Done {
			return fmt.Errorf("switchover printed %.300q: %w", out, err)
		}
		m := moved.Moves[0]
		if err := w.follower.follow(m.Path); err != nil {
			return err
		}
		s.at = 1 - s.at
		s.held = append(s.held, time.Duration(m.Hold)*time.Microsecond)
		s.say("move %d of %d: to %s, requests waited %v; %d transactions were confirmed", i+1, s.moves, s.site(), s.held[i].Round(time.Millisecond), before)
		if err := s.sleep(ctx, s.load/10); err != nil {
			return err
		}
		if w.confirmed() == before {
			return fmt.Errorf("nothing was confirmed since move %d", i+1)
		}
	}
	if err := s.w.stop(); err != nil {
		return fmt.Errorf("a client was told an error: %w", err)
	}
	return s.check(ctx, "after the moves")
}
