package guard

import "testing"

// TestCount: what is counted is what Enter goes by.
func TestCount(t *testing.T) {
	var f InFlight
	a, b := Origin{"http", "a.example", 80}, Origin{"https", "a.example", 80}
	if f.Count(a) != 0 {
		t.Errorf("%d requests in flight, want none", f.Count(a))
	}
	done, ok := f.Enter(a, 1)
	if !ok || f.Count(a) != 1 || f.Count(b) != 0 {
		t.Errorf("entered: %t; %d and %d requests in flight, want 1 and none", ok, f.Count(a), f.Count(b))
	}
	if _, ok := f.Enter(a, 1); ok || f.Count(a) != 1 {
		t.Errorf("entered beyond the limit: %t; %d requests in flight, want 1", ok, f.Count(a))
	}
	done()
	if f.Count(a) != 0 {
		t.Errorf("%d requests in flight at the end, want none", f.Count(a))
	}
}
