package dnsclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// errClosed is what lookups return after Close.
var errClosed = errors.New("DNS client closed")

// Kind is why a lookup gave no addresses or services.
type Kind int

// The kinds of failure. If the tries of one lookup failed for different reasons,
// the one that comes later in the list from Timeout to ServerFailure stands for
// all of them, since it explains most.
const (
	// Invalid is a question that cannot be asked; nothing was sent.
	Invalid Kind = iota + 1
	// Canceled means that the context of the caller was canceled.
	Canceled
	// Closed means that the client was closed.
	Closed
	// Outage means that all nameservers are known to be down.
	Outage
	// Timeout means that no nameserver replied in time.
	Timeout
	// Network means that nameservers could not be reached: sending failed, or
	// connecting, or the server's certificate could not be verified.
	Network
	// Malformed is a reply that makes no sense.
	Malformed
	// ServerFailure is a reply by which the server does not answer: an rcode such
	// as SERVFAIL or REFUSED, or a referral to other servers.
	ServerFailure
	// NoData means that the name exists, but has no record of this type.
	NoData
	// NotFound means that the name does not exist (NXDOMAIN).
	NotFound
)

// Error is why a lookup gave no addresses or services.
type Error struct {
	// Name and Type are the question of the lookup, as it was asked.
	Name string
	Type uint16

	Kind Kind

	// Rcode is the response code of the reply that caused the failure, extended
	// by EDNS (RFC 6895) if the reply extends it; -1 if no reply caused it.
	Rcode int

	// Server is the nameserver of the try that caused the failure; the zero value
	// if none did.
	Server Nameserver

	// TTL is for how long NotFound and NoData may be cached: the smallest of TTL
	// and MINIMUM of the SOA record (RFC 2308, section 5) and of the TTLs of the
	// CNAME records that led there. It has no meaning without HasSOA.
	TTL    time.Duration
	HasSOA bool

	// Tries is all that was sent, in order.
	Tries []Try

	err         error    // what the rcode does not say
	down        []string // for Outage: the servers, and why each is down
	otherClient bool     // an alias led to another client (see Config.Route), and that one failed
}

// outcomeAlias is the Outcome of a try that led to another name.
const outcomeAlias = "alias"

// Try is one query to one nameserver.
type Try struct {
	// Name is the name in the question: that of the lookup, or the one at the
	// end of its CNAME records.
	Name string

	Server    Nameserver
	Transport string // "udp", "tcp", "tls" or "https"
	Duration  time.Duration

	// Ignored is how many messages that came were no reply to the query.
	Ignored int

	// Outcome is the rcode of the reply ("SERVFAIL"), or a short description of
	// the reply ("answer", "truncated") or of the failure ("no reply").
	Outcome string
}

// Error reads like
//
//	looking up a.example (A): 10.0.0.53:53 replied SERVFAIL
func (e *Error) Error() string {
	return fmt.Sprintf("looking up %s (%s): %s", e.Name, dns.Type(e.Type), e.Reason())
}

// Reason returns what Error does, without the question.
func (e *Error) Reason() string {
	switch e.Kind {
	case NotFound, ServerFailure:
		if e.err != nil {
			return fmt.Sprintf("%s replied %v", e.Server, e.err)
		}
		return fmt.Sprintf("%s replied %s", e.Server, rcodeString(e.Rcode))
	case NoData:
		return fmt.Sprintf("%s replied that there is none", e.Server)
	case Malformed, Network:
		return fmt.Sprintf("%s: %v%s", e.Server, e.err, e.others())
	case Timeout:
		return "no nameserver replied in time" + list(e.asked())
	case Outage:
		return "all nameservers are down" + list(e.down)
	default:
		return e.err.Error()
	}
}

// asked returns the servers that gave no answer, each once.
func (e *Error) asked() []string {
	var asked []string
	for _, try := range e.Tries {
		if server := try.Server.String(); try.Outcome != outcomeAlias && !slices.Contains(asked, server) {
			asked = append(asked, server)
		}
	}
	return asked
}

// others describes how the tries at other servers ended, the last one of each.
func (e *Error) others() string {
	var b strings.Builder
	described := []Nameserver{e.Server}
	for _, try := range slices.Backward(e.Tries) {
		if !slices.Contains(described, try.Server) {
			described = append(described, try.Server)
			fmt.Fprintf(&b, "; %s: %s", try.Server, try.Outcome)
		}
	}
	return b.String()
}

// list writes a list as " (A, B)".
func list(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return " (" + strings.Join(all, ", ") + ")"
}

// Unwrap returns the cause: the error of the context or of the network. It is
// nil if the rcode of a reply is the whole reason.
func (e *Error) Unwrap() error { return e.err }

// Negative reports whether the failure is an answer: the name does not exist or
// has no record of this type. It may be cached for ttl, which is negative if the
// reply has no SOA record and so gives no time.
func (e *Error) Negative() (ttl time.Duration, ok bool) {
	switch {
	case e.Kind != NotFound && e.Kind != NoData:
		return 0, false
	case !e.HasSOA:
		return -1, true
	default:
		return e.TTL, true
	}
}

// RcodeString returns the name of Rcode, as SERVFAIL; empty if no reply caused the failure.
func (e *Error) RcodeString() string {
	if e.Rcode < 0 {
		return ""
	}
	return rcodeString(e.Rcode)
}

// NotFound reports whether the name does not exist.
func (e *Error) NotFound() bool { return e.Kind == NotFound }

// Timeout reports whether no nameserver replied in time.
func (e *Error) Timeout() bool { return e.Kind == Timeout }

// Outage reports whether nothing was asked because all nameservers of this
// client are down.
func (e *Error) Outage() bool { return e.Kind == Outage && !e.otherClient }

// rcodeString returns the name of an rcode, or RCODE and its number.
func rcodeString(rcode int) string {
	if rcode == dns.RcodeBadVers {
		return "BADVERS" // and not BADSIG, which has the same number
	}
	if s, ok := dns.RcodeToString[rcode]; ok {
		return s
	}
	return fmt.Sprintf("RCODE%d", rcode)
}

// failure is why an attempt or a lookup gave no addresses or services; none if
// kind is zero. The fields are those of Error.
type failure struct {
	kind        Kind
	server      *Nameserver // nil: none
	rcode       int
	err         error
	down        []string
	otherClient bool
}

// String is the outcome in a Try.
func (f failure) String() string {
	switch {
	case f.kind == NoData:
		return "no data"
	case f.kind == Timeout:
		return "no reply"
	case f.err != nil:
		return f.err.Error()
	default:
		return rcodeString(f.rcode)
	}
}

// exchangeFailure returns the failure that the error of an exchange is.
func exchangeFailure(server *Nameserver, err error) failure {
	f := failure{kind: Network, server: server, rcode: -1, err: err}
	if _, ok := errors.AsType[malformed](err); ok {
		f.kind = Malformed
	} else if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		f.kind = Timeout
	} else if e, ok := errors.AsType[*os.SyscallError](err); ok {
		f.err = e.Err // the rest of its text is addresses, which Error has
	}
	return f
}

// contextFailure returns the failure that the end of ctx is; none if ctx has not
// ended.
func contextFailure(ctx context.Context) failure {
	err := ctx.Err()
	if end, ok := ctx.Deadline(); ok && err == nil && !time.Now().Before(end) {
		err = context.DeadlineExceeded // its timer may be late
	}
	switch {
	case err == nil:
		return failure{}
	case errors.Is(err, context.DeadlineExceeded):
		return failure{kind: Timeout, rcode: -1, err: err}
	default:
		return failure{kind: Canceled, rcode: -1, err: err}
	}
}
