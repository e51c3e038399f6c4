package nemesis

import (
	"reflect"
	"slices"
	"testing"
)

// TestParser reads what consumers say.
func TestParser(t *testing.T) {
	p := parser{attachment: 3, open: map[string]*Request{}}
	var begun, answered []*Request
	for _, s := range []string{
		"c 1 w 4 2 77 100", "c 2 r 0 3 0 110", "c 3 f 0 0 0 115", "r 2 120 0 5 -1 0", "c 4 z 9 1 0 121", "r 1 130 0", "r 4 140 28", "r 3 150 0",
	} {
		b, a, err := p.line(s)
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		if b != nil {
			begun = append(begun, b)
		}
		if a != nil {
			answered = append(answered, a)
		}
	}
	want := []*Request{
		{Attachment: 3, Kind: Write, First: 4, Versions: []int64{77, 77}, Call: 100, Return: 130, OK: true},
		{Attachment: 3, Kind: Read, First: 0, Versions: []int64{5, Damaged, 0}, Call: 110, Return: 120, OK: true},
		{Attachment: 3, Kind: Flush, Versions: []int64{}, Call: 115, Return: 150, OK: true},
		{Attachment: 3, Kind: Zero, First: 9, Versions: []int64{0}, Call: 121, Return: 140},
	}
	if !reflect.DeepEqual(begun, want) {
		t.Errorf("begun: %+v", begun)
	}
	if len(answered) != 4 || answered[0] != begun[1] || len(p.open) != 0 {
		t.Errorf("answered: %+v; open: %v", answered, p.open)
	}
}

// TestParserRefuses wants what is no line of a consumer refused.
func TestParserRefuses(t *testing.T) {
	for _, s := range []string{"", "x", "c 1 w 4 2 77", "c 1 w 4 2 77 now", "r 9 120 0", "r 1 120 0 5 6", "r 1 120 0 old"} {
		p := parser{open: map[string]*Request{"1": {Kind: Read, Versions: []int64{0}}}}
		if _, _, err := p.line(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}

// TestLeft wants the blocks of writes without acknowledgement, each once.
func TestLeft(t *testing.T) {
	h := History{Requests: []*Request{
		{Kind: Write, First: 7, Versions: []int64{1, 1}},
		{Kind: Zero, First: 6, Versions: []int64{0, 0}, Return: 5},
		{Kind: Write, First: 1, Versions: []int64{2}, OK: true},
		{Kind: Read, First: 2, Versions: []int64{0}},
		{Kind: Flush},
	}}
	if left := h.Left(); !slices.Equal(left, []int{6, 7, 8}) {
		t.Errorf("left are %v", left)
	}
}
