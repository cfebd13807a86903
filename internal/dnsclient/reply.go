package dnsclient

import (
	"errors"

	"github.com/miekg/dns"
)

// This file is about what a reply means; message.go reads it.

// refusesEDNS reports whether r may be due to the OPT record of the query
// (RFC 6891, section 7).
func (r *reply) refusesEDNS() bool {
	switch r.rcode {
	case dns.RcodeFormatError, dns.RcodeNotImplemented, dns.RcodeBadVers:
		return true
	default:
		return false
	}
}

// isAlias reports whether r leads to another name and does not say what is there.
func (r *reply) isAlias() bool {
	return len(r.addrs)+len(r.services) == 0 && r.links > 0 && !r.soa
}

// classify returns why r has no addresses or services; no failure if it has, or
// if it is an alias and an alias is accepted.
func (r *reply) classify(acceptAlias bool) failure {
	f := failure{rcode: r.rcode}
	switch {
	case r.truncated:
		f.kind, f.err = Malformed, malformed("truncated")
	case r.rcode != dns.RcodeSuccess && r.rcode != dns.RcodeNameError:
		f.kind = ServerFailure
	case r.isAlias() && acceptAlias:
	case r.isAlias() && !r.empty:
		f.kind, f.err = Malformed, malformed("CNAME records lead nowhere")
	case r.rcode == dns.RcodeNameError:
		f.kind = NotFound
	case len(r.addrs)+len(r.services) > 0:
	case r.empty && !r.authoritative && !r.recursive && !r.soa:
		f.kind, f.err = ServerFailure, errors.New("without an answer, as a server that is neither authoritative nor recursive")
	default:
		f.kind = NoData
	}
	return f
}
