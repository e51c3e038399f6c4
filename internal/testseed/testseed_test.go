package testseed

import "testing"

func TestChoose(t *testing.T) {
	same := choose(t, "")
	if choose(t, "") != same {
		t.Error("not the same twice")
	}
	t.Run("other", func(t *testing.T) {
		if choose(t, "") == same {
			t.Error("the same for another test")
		}
	})
	if n := choose(t, "42"); n != 42 {
		t.Errorf("%d for 42", n)
	}
	if a, b := choose(t, "random"), choose(t, "random"); a == b {
		t.Error("random is the same twice")
	}
}
