package dnsclient

import (
	"encoding/binary"
	"errors"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"caddytarget/internal/dnsname"
)

// Only this file knows the wire format (RFC 1035, section 4). It takes names and
// numbers from the library, but reads records itself: the library rejects a
// message for any record that it cannot read, asked for or not, and accepts an
// address record without data.

const (
	headerLen = 12
	maxName   = dnsname.MaxWire

	// udpSize is the largest datagram that servers are asked to send, a size that
	// needs no fragments on any path (DNS flag day 2020).
	udpSize = 1232

	// maxLinks is how many CNAME records may lead from a name to its addresses.
	maxLinks = 11

	// maxOwners is how many names of one reply are visited, where a name has more
	// than one CNAME record.
	maxOwners = 32
)

// malformed is why a reply cannot be used.
type malformed string

func (m malformed) Error() string { return "malformed reply: " + string(m) }

// question is what is asked, ready to be sent.
type question struct {
	name  string // absolute, in the library's canonical text form
	qtype uint16
	wire  []byte // the question section
	links int    // CNAME records that led from the name of the lookup to this one
}

// rootQuestion asks for the nameservers of the root, which every recursive
// server has.
var rootQuestion = &question{name: ".", qtype: dns.TypeNS, wire: []byte{0, 0, byte(dns.TypeNS), 0, dns.ClassINET}}

// newQuestion makes a question of an absolute name.
func newQuestion(name string, qtype uint16) (*question, error) {
	wire := make([]byte, maxName, maxName+4)
	n, err := dns.PackDomainName(name, wire, 0, nil, false)
	if err != nil {
		return nil, errors.New("not a domain name")
	}
	canonical, _, err := dns.UnpackDomainName(wire[:n], 0)
	if err != nil {
		return nil, errors.New("not a domain name")
	}
	wire = binary.BigEndian.AppendUint16(wire[:n], qtype)
	wire = binary.BigEndian.AppendUint16(wire, dns.ClassINET)
	return &question{name: canonical, qtype: qtype, wire: slices.Clone(wire)}, nil
}

// appendQuery appends the query to b: recursion desired, and with an OPT record
// if edns is set (RFC 6891).
func (q *question) appendQuery(b []byte, id uint16, edns bool) []byte {
	b = binary.BigEndian.AppendUint16(b, id)
	b = append(b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0) // RD, QDCOUNT 1
	arcount := len(b) - 1
	b = append(b, q.wire...)
	if edns {
		b[arcount] = 1
		b = append(b, 0, 0, byte(dns.TypeOPT), udpSize>>8, udpSize&0xff, 0, 0, 0, 0, 0, 0)
	}
	return b
}

// answeredBy reports whether msg is a reply to the query for q with this ID
// (RFC 5452, section 9.1). A reply without a question section counts as one,
// since that is how some servers send errors; parse accepts nothing else of it.
func (q *question) answeredBy(msg []byte, id uint16) bool {
	const qrAndOpcode, replyToQuery = 0xf8, 0x80
	if len(msg) < headerLen || binary.BigEndian.Uint16(msg) != id || msg[2]&qrAndOpcode != replyToQuery {
		return false
	}
	switch binary.BigEndian.Uint16(msg[4:]) {
	case 0:
		return true
	case 1:
		return q.inQuestionSection(msg[headerLen:])
	default:
		return false
	}
}

// inQuestionSection reports whether b begins with the question: the same name
// in any case, the same type and class.
func (q *question) inQuestionSection(b []byte) bool {
	if len(b) < len(q.wire) {
		return false
	}
	name := len(q.wire) - 4
	for i, c := range q.wire[:name] {
		if lower(b[i]) != lower(c) {
			return false
		}
	}
	return string(b[name:len(q.wire)]) == string(q.wire[name:])
}

// lower folds ASCII letters. Length octets of labels are below all letters.
func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// reply is the reply of a nameserver to a question.
type reply struct {
	rcode         int
	truncated     bool
	authoritative bool
	recursive     bool // the server offers recursion
	empty         bool // no record in the answer section

	addrs    []netip.Addr
	services []net.SRV
	end      string        // the name the CNAME records lead to; the question's without any
	links    int           // CNAME records from the name of the lookup to end
	ttl      time.Duration // the smallest of all records that lead to addrs or services, or to end

	soa      bool          // the authority section has the SOA record of end's zone
	soaOwner string        // that zone, or another one
	soaTTL   time.Duration // for how long the absence of records may be cached (RFC 2308)
}

// record is a record of the answer section: an alias, an address or a service.
type record struct {
	owner   string
	target  string     // of a CNAME record
	addr    netip.Addr // of an address record; the zero value if its data was not an address
	service net.SRV    // of an SRV record; without a target if its data was not one
	ttl     uint32
}

// parse reads a reply for which q.answeredBy holds. Of a truncated reply it
// reads the header only. The error is a malformed.
func parse(msg []byte, q *question) (reply, error) {
	r := reply{
		rcode:         int(msg[3] & 0x0f),
		truncated:     msg[2]&0x02 != 0,
		authoritative: msg[2]&0x04 != 0,
		recursive:     msg[3]&0x80 != 0,
		empty:         binary.BigEndian.Uint16(msg[6:]) == 0,
		end:           q.name,
		links:         q.links,
	}
	var (
		records []record
		bad     malformed
	)
	switch {
	case binary.BigEndian.Uint16(msg[4:]) == 0:
		r.truncated, bad = false, "no question"
	case r.truncated:
		return r, nil
	default:
		records, bad = r.walk(msg, q)
	}
	if r.rcode != dns.RcodeSuccess && r.rcode != dns.RcodeNameError {
		return r, nil // an error is an error, whatever follows it
	}
	if bad == "" {
		bad = r.follow(records)
	}
	if bad != "" {
		return r, bad
	}
	return r, nil
}

// walk reads all records of msg and returns the aliases, addresses and services
// of the answer section. It puts the data of the OPT and SOA records into r.
func (r *reply) walk(msg []byte, q *question) (records []record, bad malformed) {
	const answer, authority, additional = 0, 1, 2

	off := headerLen + len(q.wire)
	for section := answer; section <= additional; section++ {
		for range binary.BigEndian.Uint16(msg[6+2*section:]) {
			owner, data, err := dns.UnpackDomainName(msg, off)
			if err != nil {
				return nil, "bad owner name"
			}
			if data+10 > len(msg) {
				return nil, "record cut short"
			}
			var (
				rtype = binary.BigEndian.Uint16(msg[data:])
				class = binary.BigEndian.Uint16(msg[data+2:])
				ttl   = binary.BigEndian.Uint32(msg[data+4:])
				end   = data + 10 + int(binary.BigEndian.Uint16(msg[data+8:]))
			)
			data += 10
			if end > len(msg) {
				return nil, "record longer than the message"
			}
			off = end

			switch {
			case rtype == dns.TypeOPT && section == additional:
				r.rcode |= int(ttl>>24) << 4
			case class != dns.ClassINET:
			case rtype == dns.TypeSOA && section == authority && r.soaOwner == "":
				minimum, ok := soaMinimum(msg, data, end)
				if !ok {
					return nil, "bad SOA record"
				}
				r.soaOwner = owner
				r.soaTTL = min(seconds(ttl), seconds(minimum))
			case rtype == dns.TypeCNAME && section == answer:
				target, n, err := dns.UnpackDomainName(msg[:end], data)
				if err != nil || n != end {
					return nil, "bad CNAME record"
				}
				records = append(records, record{owner: owner, target: target, ttl: ttl})
			case rtype != q.qtype || section != answer:
			case rtype == dns.TypeSRV:
				records = append(records, record{owner: owner, service: service(msg[:end], data), ttl: ttl})
			default:
				records = append(records, record{owner: owner, addr: address(rtype, msg[data:end]), ttl: ttl})
			}
		}
	}
	return records, ""
}

// address reads the data of an address record. IPv4-mapped IPv6 addresses become
// IPv4 addresses.
func address(rtype uint16, data []byte) netip.Addr {
	switch {
	case rtype == dns.TypeA && len(data) == 4, rtype == dns.TypeAAAA && len(data) == 16:
		addr, _ := netip.AddrFromSlice(data)
		return addr.Unmap()
	default:
		return netip.Addr{}
	}
}

// service reads the data of an SRV record, from off to the end of msg.
func service(msg []byte, off int) net.SRV {
	if len(msg)-off < 7 {
		return net.SRV{}
	}
	target, n, err := dns.UnpackDomainName(msg, off+6)
	if err != nil || n != len(msg) || strings.Contains(target, `\`) {
		return net.SRV{} // what has to be escaped is not the name of a host
	}
	return net.SRV{
		Priority: binary.BigEndian.Uint16(msg[off:]),
		Weight:   binary.BigEndian.Uint16(msg[off+2:]),
		Port:     binary.BigEndian.Uint16(msg[off+4:]),
		Target:   strings.ToLower(target),
	}
}

// soaMinimum returns the last field of the SOA record whose data is
// msg[off:end].
func soaMinimum(msg []byte, off, end int) (minimum uint32, ok bool) {
	for range 2 { // MNAME, RNAME
		var err error
		if _, off, err = dns.UnpackDomainName(msg[:end], off); err != nil {
			return 0, false
		}
	}
	if end-off != 20 {
		return 0, false
	}
	return binary.BigEndian.Uint32(msg[end-4:]), true
}

// seconds is a TTL as a duration. One with the top bit set is zero (RFC 2181,
// section 8).
func seconds(ttl uint32) time.Duration {
	if ttl > math.MaxInt32 {
		return 0
	}
	return time.Duration(ttl) * time.Second
}

// follow walks from r.end along CNAME records, in any order, and collects the
// addresses or services of the name where they end. Records of other names are
// ignored.
//
// A name with a CNAME record must have no other record. If a reply violates this,
// the first chain that ends in addresses counts; if none does, the first name
// along the chains that has some itself. Other clients serve such names too.
func (r *reply) follow(records []record) malformed {
	c := chains{records: records}
	end, found := c.find(owner{name: r.end, links: r.links, ttl: seconds(math.MaxInt32)})
	if !found {
		if c.endless {
			return "CNAME records lead in a circle or too far"
		}
		end = c.first
		for _, o := range c.seen {
			if c.usable(o.name) {
				end = o
				break
			}
		}
	}
	r.end, r.links, r.ttl = end.name, end.links, end.ttl

	bad, unavailable := false, false
	for i := range records {
		rec := &records[i]
		switch {
		case rec.target != "" || !strings.EqualFold(rec.owner, r.end):
			continue
		case rec.addr.IsValid():
			r.addrs = append(r.addrs, rec.addr)
		case rec.service.Target == ".":
			unavailable = true
		case rec.service.Target != "":
			rec.service.Target = strings.TrimSuffix(rec.service.Target, ".")
			r.services = append(r.services, rec.service)
		default:
			bad = true
			continue
		}
		r.ttl = min(r.ttl, seconds(rec.ttl))
	}
	if len(r.addrs)+len(r.services) > 0 {
		return ""
	}
	r.soa = r.soaOwner != "" && dns.IsSubDomain(r.soaOwner, r.end)
	switch {
	case unavailable: // as definite as an SOA record
		r.soa, r.soaTTL = true, r.ttl
	case bad:
		return "bad record"
	}
	return ""
}

// owner is a name to which CNAME records lead.
type owner struct {
	name  string
	links int           // CNAME records that led there
	ttl   time.Duration // the smallest of theirs
	done  bool          // all that it leads to was visited
}

// chains are the paths from a name along the CNAME records of a reply.
type chains struct {
	records []record
	seen    []owner // in the order in which they were met
	first   owner   // where the first chain ends
	endless bool    // a chain is a circle or too long, or there are too many
}

// find returns the end of the first chain from o that ends in addresses or services.
func (c *chains) find(o owner) (end owner, ok bool) {
	at := slices.IndexFunc(c.seen, func(other owner) bool { return strings.EqualFold(other.name, o.name) })
	switch {
	case at >= 0:
		c.endless = c.endless || !c.seen[at].done
		return owner{}, false
	case o.links > maxLinks, len(c.seen) == maxOwners:
		c.endless = true
		return owner{}, false
	}
	at = len(c.seen)
	c.seen = append(c.seen, o)
	alias := false
	for i := range c.records {
		rec := &c.records[i]
		if rec.target == "" || !strings.EqualFold(rec.owner, o.name) {
			continue
		}
		alias = true
		next := owner{name: rec.target, links: o.links + 1, ttl: min(o.ttl, c.aliasTTL(rec))}
		if end, ok := c.find(next); ok {
			return end, true
		}
	}
	c.seen[at].done = true
	if alias {
		return owner{}, false
	}
	if c.first.name == "" {
		c.first = o
	}
	return o, c.usable(o.name)
}

// aliasTTL returns the smallest TTL of a CNAME record and its duplicates.
func (c *chains) aliasTTL(rec *record) time.Duration {
	ttl := seconds(rec.ttl)
	for i := range c.records {
		if same := &c.records[i]; strings.EqualFold(same.target, rec.target) && strings.EqualFold(same.owner, rec.owner) {
			ttl = min(ttl, seconds(same.ttl))
		}
	}
	return ttl
}

// usable reports whether a name itself has an address or a service that can be used.
func (c *chains) usable(name string) bool {
	return slices.ContainsFunc(c.records, func(rec record) bool {
		return rec.target == "" && strings.EqualFold(rec.owner, name) &&
			(rec.addr.IsValid() || rec.service.Target != "" && rec.service.Target != ".")
	})
}
