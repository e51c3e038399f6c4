package lab

import "testing"

func TestUndoRunsBackwardsOnce(t *testing.T) {
	var u Undo
	var order []int
	for i := range 3 {
		u.Add("step", func() error { order = append(order, i); return nil })
	}
	if err := u.Run(); err != nil {
		t.Fatal(err)
	}
	if err := u.Run(); err != nil {
		t.Fatal(err)
	}
	if len(order) != 3 || order[0] != 2 || order[2] != 0 {
		t.Errorf("order %v, want 2 1 0", order)
	}
}
