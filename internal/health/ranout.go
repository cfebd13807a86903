package health

import (
	"math/bits"
	"net/netip"
	"strings"
	"time"
)

// maxRanOut is how many requests in a row have to run out of time at an address before
// that counts.
const maxRanOut = 3

// RanOut records that a request to an address ran out of the time that its client has
// chosen (timeout). The request was at the address from begun until deadline; what passes
// after the deadline, on a busy machine, is no time of the address.
//
// The failure is recorded if another address of the target usually takes no longer than
// this, and if the request began after the last recorded one had run out: a short pause
// of the backend is one failure, however many requests it meets.
//
// So a client cannot eject a healthy address for others. Its requests have to run out in
// a row, with no success in between, each has to have the usual time, and only requests
// with as little time are kept from the address. err is as in Failed.
func (t *Tracker) RanOut(target string, addr netip.AddrPort, timeout time.Duration, begun, deadline time.Time, err error) {
	if usual, ok := t.usual.elsewhere(target, addr, t.now()); !ok || deadline.Sub(begun) < usual {
		return
	}
	reason := t.reason(err)
	t.update(recordID{target, addr, timeoutLimits[timeoutClass(timeout)]}, func(r *record, now time.Time) {
		if begun.Before(r.lastFailed) {
			return
		}
		r.fails++
		r.lastFailed, r.sent, r.claimedAt, r.reason = now, true, time.Time{}, reason
	})
}

// timeoutLimits name the classes of timeouts that clients choose: those of class n are
// shorter than 2^n milliseconds, and half of that or longer. The last one has all others.
var timeoutLimits = [16]Limit{
	"client 1ms", "client 2ms", "client 4ms", "client 8ms", "client 16ms", "client 32ms", "client 64ms", "client 128ms",
	"client 256ms", "client 512ms", "client 1s", "client 2s", "client 4s", "client 8s", "client 16s", "client more",
}

// ofClient reports whether a limit is a class of timeouts that clients choose.
func (l Limit) ofClient() bool { return strings.HasPrefix(string(l), "client ") }

// timeoutClass returns the class of a timeout.
func timeoutClass(d time.Duration) int {
	return min(bits.Len64(uint64(d/time.Millisecond)), len(timeoutLimits)-1)
}

// WorkedIn is Worked for a response that came after the time took, to a request for
// which the client has chosen a timeout; zero: none.
func (t *Tracker) WorkedIn(took, timeout time.Duration, target string, addr netip.AddrPort, limits ...Limit) {
	t.usual.took(target, addr, took, t.now())
	t.Worked(target, addr, limits...)
	s := t.shard(addr)
	if s.size.Load() == 0 {
		return
	}
	s.mu.Lock()
	now := t.now()
	var ended []Ejection
	// Requests with more time than the response took, or with as much as this request,
	// would have got it, too.
	from := timeoutClass(took) + 1
	if timeout > 0 {
		from = min(from, timeoutClass(timeout))
	}
	for _, limit := range timeoutLimits[min(from, len(timeoutLimits)):] {
		ended = s.delete(ended, recordID{target, addr, limit}, now)
	}
	s.size.Store(int32(len(s.records)))
	s.mu.Unlock()
	t.tell(ended)
}
