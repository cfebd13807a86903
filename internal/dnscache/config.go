package dnscache

import (
	"context"
	"errors"
	"math"
	"net"
	"net/netip"
	"time"
)

// Exchanger asks nameservers.
//
// The errors of the lookups may have these methods:
//
//   - Negative() (ttl time.Duration, ok bool): ok if the error is an authoritative
//     answer that there is no such record; ttl is below zero if the answer has none.
//   - NotFound() bool: whether the name itself does not exist, not just this type.
//   - Outage() bool: whether the question was not asked because no nameserver is up.
type Exchanger interface {
	// Ask asks for the addresses of a name, of one type (A or AAAA). It does not
	// wait for them, but calls done once, maybe before it returns, with the addresses
	// and their TTL. When ctx ends it calls done with an error.
	Ask(ctx context.Context, name string, qtype uint16, done func(addrs []netip.Addr, ttl time.Duration, err error))

	// AskSRV asks for the records of a service, and is like Ask otherwise.
	AskSRV(ctx context.Context, name string, done func(records []net.SRV, ttl time.Duration, err error))

	// Outage returns nil while asking makes sense; otherwise a channel that
	// is closed when it does again.
	Outage() <-chan struct{}
}

// The record types a cache asks for.
const (
	TypeA    uint16 = 1
	TypeAAAA uint16 = 28
	TypeSRV  uint16 = 33
)

// Family is the policy which addresses of a name are asked for, and in which order
// they are offered.
type Family uint8

const (
	// Interleaved asks for both and alternates, IPv6 first (RFC 8305, section 4).
	Interleaved Family = iota
	// IPv4 asks for A records only.
	IPv4
	// IPv6 asks for AAAA records only.
	IPv6
	// PreferIPv4 asks for both and offers IPv4 addresses first.
	PreferIPv4
	// PreferIPv6 asks for both and offers IPv6 addresses first.
	PreferIPv6
)

// Config configures a cache. New sets the defaults of what is zero.
type Config struct {
	// Family is called for every lookup; default: always Interleaved.
	Family func() Family

	// Sequential is called for every lookup of two families. If it reports true, AAAA
	// is asked for only when the reply for A has come or half of Deadline has passed.
	// Default: always false.
	Sequential func() bool

	MinTTL      time.Duration // minimum TTL of an answer; default 1s
	MaxTTL      time.Duration // maximum TTL of an answer; default 1h
	NegativeTTL time.Duration // maximum TTL of a negative answer; default 30s
	Stale       time.Duration // how long after it expired an answer may still serve; default 24h, negative: not at all
	StaleWait   time.Duration // how long readers wait for a lookup before they get an answer that expired over a minute ago; default 500ms
	Refresh     time.Duration // names used in this time are refreshed in the background; default 5m, negative: none, Always: all
	Deadline    time.Duration // for a whole lookup; default 5s

	// RefreshQueries is how many queries for refreshes each use of a name pays for.
	// Names that are used too seldom for that are served from the expired answer
	// for up to a minute. Default 1.
	RefreshQueries int

	// Preload are names that are looked up at Start, and refreshed whether they
	// are used or not. They are never evicted. One that fails is looked up again
	// after the pause for failures, one that has no address when its negative
	// answer expires.
	Preload []string

	// MaxPreload is how many names SetPreload takes; the cache has room for as many
	// beside Size. At least, and by default, the number of Preload.
	MaxPreload int

	// PreloadChanged is called when a lookup shows that a name of Preload cannot be
	// resolved any more, with the reason, and with nil when it can be again. A name cannot
	// be resolved while it has no address, or only such as have expired and could not be
	// refreshed. It is called once for each change, not for each lookup, from any
	// goroutine. Default: nothing is called.
	PreloadChanged func(name string, reason error)

	// Size is how many names the cache has room for, not counting those of Preload.
	// Default 100000.
	Size int

	// MaxLookups is how many lookups may be in flight for readers; as many again
	// may wait. While one waits, one that has taken over 1.5 seconds is ended with
	// ErrOverloaded. Lookups of names below one registrable domain may be a quarter
	// of what is still free: two fifths of MaxLookups if there are no others.
	// Refreshes do not count, nor do readers who wait for a lookup that has begun
	// already. Names of Preload are not refused for their domain. Default 1024.
	MaxLookups int

	// NewNames is how many names that are not in the cache readers may look up in
	// a second; 0: any number.
	NewNames int

	// Restoring is called when a reader would have to wait for a lookup. While what was
	// kept of names is still to be imported, it returns a channel that is closed after
	// that; otherwise nil, and it is called no more. Readers take what comes first. One
	// whose lookup fails within a second after Start, or after the first of these calls,
	// waits for it until that second has passed. Default: nothing is imported later.
	Restoring func() <-chan struct{}

	// Now returns the time since some fixed moment. Default: the monotonic clock.
	Now func() time.Duration
}

// Always is the Config.Refresh of a cache that refreshes all names until they are
// evicted, but for those that have no address: these are looked up when they are
// used.
const Always time.Duration = math.MaxInt64

// ErrOverloaded is returned when too many lookups are in flight and waiting, in
// all or of names below one domain.
var ErrOverloaded = errors.New("too many lookups in flight")

// ErrTooManyNewNames is returned for a name that is not in the cache once readers
// have looked up as many as Config.NewNames allows.
var ErrTooManyNewNames = errors.New("too many new names")

// ErrClosed is returned by a closed cache for names that it does not know.
var ErrClosed = errors.New("resolver closed")

// errNameTooLong is returned for names that are longer than the DNS allows.
var errNameTooLong = errors.New("name too long")
