package topk

import (
	"cmp"
	"slices"
	"strings"
)

// series is a target that Series selected.
type series struct {
	shown     Counts // what was returned last
	counted   Counts // the target's counts then
	admission uint32 // and its entry.admission
}

// Series returns the K targets with the most requests and the K targets with the most
// failures of late, in the order of their names, and the counts of all others. Together
// they are all observations.
//
// The counts never fall from one call to the next. Those of a target begin at 0 when it is
// selected: what was counted before remains in "other". When a target is no longer
// selected its counts are added to "other", and should it be selected again it begins at 0
// again. A target is replaced only by one with a score that is a quarter higher, so that
// two equal ones do not alternate.
//
// "Of late" is by the number of observations, not by time: scores are halved after every
// 1024·Size observations.
//
// The selection is part of the Sketch: there is one for all callers.
func (s *Sketch) Series() (list []Entry, other Counts) {
	s.seriesMu.Lock()
	defer s.seriesMu.Unlock()
	targets, other := s.snapshot()
	for i, t := range targets {
		targets[i].selected = s.series[t.Target] != nil
	}
	selected := make(map[string]*series, len(s.series))
	for _, g := range [...]group{busy, failing} {
		for _, t := range first(s.k, targets, g) {
			if selected[t.Target] == nil {
				selected[t.Target] = s.update(t)
			}
		}
	}
	s.series = selected
	for target, se := range selected {
		list = append(list, Entry{target, se.shown})
		other.subtract(se.shown)
	}
	slices.SortFunc(list, func(a, b Entry) int { return strings.Compare(a.Target, b.Target) })
	return list, other
}

// first sorts targets by their scores in a group, where one that is selected counts a
// quarter more, and returns the first k. Targets without failures are not failing.
func first(k int, targets []stored, g group) []stored {
	rank := func(t stored) uint64 {
		r := t.score.in(g)
		if t.selected {
			r += r / 4
		}
		return r
	}
	slices.SortFunc(targets, func(a, b stored) int {
		return cmp.Or(cmp.Compare(rank(b), rank(a)), strings.Compare(a.Target, b.Target))
	})
	targets = targets[:min(k, len(targets))]
	if g == failing {
		healthy := func(t stored) bool { return t.score.failures == 0 }
		if i := slices.IndexFunc(targets, healthy); i >= 0 {
			targets = targets[:i]
		}
	}
	return targets
}

// update returns the series of a target that is selected, with what was counted since
// the last call. If the target lost its slot meanwhile and got one again, that is what was
// counted since then, and the rest is in "other".
func (s *Sketch) update(t stored) *series {
	se := s.series[t.Target]
	switch {
	case se == nil:
		se = new(series)
	case se.admission == t.admission:
		se.shown.add(t.Counts)
		se.shown.subtract(se.counted)
	default:
		se.shown.add(t.Counts)
	}
	se.counted, se.admission = t.Counts, t.admission
	return se
}
