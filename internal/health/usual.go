package health

import (
	"hash/maphash"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// usualTimes estimates how long the addresses of each target usually take to respond:
// the time within which 95 of 100 responses come.
type usualTimes struct {
	shards [64]usualShard
}

// usualShard has the targets whose names have the same hash.
type usualShard struct {
	mu      sync.Mutex
	targets map[string][]usualTime // by address
}

// usualTime is the estimate for an address.
type usualTime struct {
	addr  netip.AddrPort
	usual time.Duration
	count int       // of responses, up to firstCount
	last  time.Time // of the last response
}

const (
	// maxUsualTargets bounds the targets of a shard, maxUsualAddrs the addresses of a
	// target. Beyond that, another one is forgotten.
	maxUsualTargets = 1024
	maxUsualAddrs   = 16

	// An estimate begins as the longest of the first firstCount responses, and counts
	// after minUsualCount. Each further response that took longer makes it grow by the
	// part usualGrowth, each other one shrink by usualShrinkage: the two are in balance
	// where one response of 20 takes longer.
	minUsualCount  = 5
	firstCount     = 20
	usualGrowth    = 0.19
	usualShrinkage = 0.01
)

var usualSeed = maphash.MakeSeed()

// shard returns the shard of a target.
func (u *usualTimes) shard(target string) *usualShard {
	return &u.shards[maphash.String(usualSeed, target)%uint64(len(u.shards))]
}

// took records how long a response took.
func (u *usualTimes) took(target string, addr netip.AddrPort, took time.Duration, now time.Time) {
	s := u.shard(target)
	s.mu.Lock()
	defer s.mu.Unlock()
	times := s.targets[target]
	oldest := 0
	for i := range times {
		t := &times[i]
		if t.addr == addr {
			t.add(took, now)
			return
		}
		if t.last.Before(times[oldest].last) {
			oldest = i
		}
	}
	first := usualTime{addr: addr}
	first.add(took, now)
	if len(times) == maxUsualAddrs {
		times[oldest] = first
		return
	}
	if times == nil {
		if s.targets == nil {
			s.targets = make(map[string][]usualTime)
		}
		if len(s.targets) >= maxUsualTargets {
			for other := range s.targets {
				delete(s.targets, other)
				break
			}
		}
		target = strings.Clone(target) // it may be a substring of something large
	}
	s.targets[target] = append(times, first)
}

// add adjusts the estimate to another response.
func (t *usualTime) add(took time.Duration, now time.Time) {
	t.last = now
	switch {
	case t.count < firstCount:
		t.count++
		t.usual = max(t.usual, took)
	case took > t.usual:
		t.usual = min(took, t.usual+time.Duration(float64(t.usual)*usualGrowth)+1)
	default:
		t.usual = max(took, t.usual-time.Duration(float64(t.usual)*usualShrinkage))
	}
}

// elsewhere returns how long the fastest of the target's other addresses usually
// takes, if that is known.
func (u *usualTimes) elsewhere(target string, addr netip.AddrPort, now time.Time) (usual time.Duration, ok bool) {
	s := u.shard(target)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.targets[target] {
		if t.count < minUsualCount || t.addr == addr || t.addr.Port() != addr.Port() || now.Sub(t.last) > forgetAfter {
			continue
		}
		if !ok || t.usual < usual {
			usual, ok = t.usual, true
		}
	}
	return usual, ok
}
