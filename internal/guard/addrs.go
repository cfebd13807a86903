package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"go4.org/netipx"
)

// privateRanges is what "private_ranges" means. It is Caddy's list, see
// caddyhttp.PrivateRangesCIDR, but for unique local addresses, of which Caddy
// has fd00::/8 alone.
var privateRanges = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("fc00::/7"),
	netip.MustParsePrefix("::1/128"),
}

const (
	privateRangesEntry = "private_ranges"
	anyEntry           = "any"
)

// globallyRoutable is the default: the addresses that the table of blocks has
// as globally routable.
var globallyRoutable = sync.OnceValue(func() *netipx.IPSet {
	// Shorter prefixes first, so that the longer ones have the last word.
	var b netipx.IPSetBuilder
	for bits := range 128 + 1 {
		for _, block := range blocks {
			switch {
			case block.prefix.Bits() != bits:
			case block.rule == "":
				b.AddPrefix(block.prefix)
			default:
				b.RemovePrefix(block.prefix)
			}
		}
	}
	set, err := b.IPSet()
	if err != nil {
		panic(err) // the table is constant
	}
	return set
})

func (r *Rules) compileAddrs(allow, deny []string) error {
	var opened, named, refused, allowed netipx.IPSetBuilder

	for _, block := range blocks {
		if neverCallable(block.rule) {
			refused.AddPrefix(block.prefix)
		}
	}
	for _, entry := range deny {
		switch entry {
		case privateRangesEntry:
			for _, p := range privateRanges {
				refused.AddPrefix(p)
			}
		case anyEntry:
			return entryError("deny_ips", entry, errors.New("only addresses to allow can be any; to deny all, write 0.0.0.0/0 and ::/0"))
		default:
			p, err := parsePrefix(entry)
			if err != nil {
				return entryError("deny_ips", entry, err)
			}
			refused.AddPrefix(p)
		}
	}

	// The entry "private_ranges" goes first, because it opens no metadata
	// services, while other entries may.
	for _, entry := range allow {
		if entry != privateRangesEntry {
			continue
		}
		for _, p := range privateRanges {
			opened.AddPrefix(p)
		}
		for _, block := range blocks {
			if block.rule == RuleMetadata {
				opened.RemovePrefix(block.prefix)
			}
		}
		break
	}
	for _, entry := range allow {
		switch entry {
		case privateRangesEntry:
		case anyEntry:
			opened.AddPrefix(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
			opened.AddPrefix(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
		default:
			p, err := parsePrefix(entry)
			if err != nil {
				return entryError("allow_ips", entry, err)
			}
			if block := blockOf(p.Addr()); neverCallable(block.rule) && block.prefix.Bits() <= p.Bits() {
				return entryError("allow_ips", entry, errors.New("unspecified, broadcast and multicast addresses cannot be allowed"))
			}
			opened.AddPrefix(p)
			if namesEmbedding(p) {
				named.AddPrefix(p)
			}
		}
	}

	var err error
	if r.opened, err = opened.IPSet(); err != nil {
		return fmt.Errorf("compiling the opened addresses: %w", err)
	}
	if r.refused, err = refused.IPSet(); err != nil {
		return fmt.Errorf("compiling the refused addresses: %w", err)
	}
	if r.named, err = named.IPSet(); err != nil {
		return fmt.Errorf("compiling the named addresses: %w", err)
	}
	allowed.AddSet(globallyRoutable())
	allowed.AddSet(r.opened)
	allowed.RemoveSet(r.refused)
	if r.allowed, err = allowed.IPSet(); err != nil {
		return fmt.Errorf("compiling the allowed addresses: %w", err)
	}
	return nil
}

// neverCallable reports whether no entry opens the blocks of a rule.
func neverCallable(rule string) bool {
	return rule == RuleUnspecified || rule == RuleBroadcast || rule == RuleMulticast
}

// namesEmbedding reports whether an entry of the allowed addresses is narrow
// enough to mean the very IPv6 addresses it covers, whatever IPv4 address is in
// them.
func namesEmbedding(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return false
	}
	in := p.Addr().As16()
	hi := binary.BigEndian.Uint64(in[:8])
	return p.Bits() >= 96 ||
		p.Bits() >= 16 && hi>>48 == prefix6to4 ||
		p.Bits() >= 32 && hi>>32 == prefixTeredo
}

// parsePrefix parses a CIDR or a single address. Bits of a CIDR beyond its
// length are dropped, and IPv4-mapped IPv6 becomes IPv4.
func parsePrefix(entry string) (netip.Prefix, error) {
	if strings.Contains(entry, "%") {
		return netip.Prefix{}, errZone
	}
	if !strings.Contains(entry, "/") {
		a, err := netip.ParseAddr(entry)
		if err != nil {
			return netip.Prefix{}, errors.New("neither an IP address nor a CIDR")
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(entry)
	if err != nil {
		return netip.Prefix{}, errors.New("neither an IP address nor a CIDR")
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	} else if p.Addr().Is4In6() {
		return netip.Prefix{}, errors.New("an IPv4-mapped CIDR has at least 96 bits")
	}
	return p.Masked(), nil
}

// AllowsAddr reports whether connections to this address may be made. It is
// CheckAddr without the reason, and never allocates.
func (r *Rules) AllowsAddr(a netip.Addr) bool {
	if a.Zone() != "" {
		return false // Unmap would drop it
	}
	a = a.Unmap()
	if !r.allowed.Contains(a) {
		return false
	}
	return a.Is4() || !r.refusedEmbedded(a).IsValid()
}

// Opens reports whether the list of allowed addresses has this address, be it
// globally routable or not.
func (r *Rules) Opens(a netip.Addr) bool { return r.opened.Contains(a.Unmap()) }

// CheckAddr reports whether connections to this address may be made, and if
// not, why. The error is a [*Refusal].
func (r *Rules) CheckAddr(a netip.Addr) error {
	if r.AllowsAddr(a) {
		return nil
	}
	e := &Refusal{Kind: KindAddress, Value: a.String()}
	switch u := a.Unmap(); {
	case !a.IsValid():
		e.Rule = RuleInvalid
	case a.Zone() != "":
		e.Rule = RuleZone
	case !r.allowed.Contains(u):
		e.Rule = r.ruleAgainst(u)
	default:
		e.Embedded = r.refusedEmbedded(u)
		e.Rule = r.ruleAgainst(e.Embedded)
	}
	return e
}

// ruleAgainst returns the rule by which an address is not among the allowed
// ones.
func (r *Rules) ruleAgainst(a netip.Addr) string {
	rule := blockOf(a).rule
	if !neverCallable(rule) && r.refused.Contains(a) {
		return RuleDenyIPs
	}
	return rule
}

// refusedEmbedded returns the IPv4 address inside an IPv6 address because of
// which the latter is refused, or the zero value if there is none.
func (r *Rules) refusedEmbedded(a netip.Addr) netip.Addr {
	for _, v4 := range Embedded(a) {
		if v4.IsValid() && !r.allowsEmbedded(a, v4) {
			return v4
		}
	}
	return netip.Addr{}
}

func (r *Rules) allowsEmbedded(a, v4 netip.Addr) bool {
	return r.allowed.Contains(v4) || r.named.Contains(a) && !r.refused.Contains(v4)
}

const (
	prefix6to4       = 0x2002             // 2002::/16, RFC 3056
	prefixTeredo     = 0x20010000         // 2001::/32, RFC 4380
	prefixNAT64      = 0x0064ff9b00000000 // 64:ff9b::/96, RFC 6052
	prefixTranslated = 0xffff0000         // ::ffff:0:0:0/96, RFC 2765
	suffixISATAP     = 0x00005efe         // ::0:5efe:a.b.c.d in any /64, RFC 5214
)

// Embedded returns the IPv4 addresses that an IPv6 address, not an IPv4-mapped
// one, stands for: by its prefix (NAT64, 6to4, Teredo and the like) and by its
// suffix (ISATAP). They are zero values where there is none.
func Embedded(a netip.Addr) [2]netip.Addr {
	in := a.As16()
	hi, lo := binary.BigEndian.Uint64(in[:8]), binary.BigEndian.Uint64(in[8:])
	return [2]netip.Addr{tunnelled(hi, lo), isatap(lo)}
}

// tunnelled returns the IPv4 address that an IPv6 address of a well-known
// prefix stands for. The halves of the address are in host order.
//
// A translator may have a prefix of its own, of the network or within the
// local-use block 64:ff9b:1::/48. Nothing tells that from the address; the
// block is refused by default, a network's prefix is for the operator to deny.
func tunnelled(hi, lo uint64) netip.Addr {
	switch {
	case hi>>48 == prefix6to4:
		return addr4(uint32(hi >> 16))
	case hi>>32 == prefixTeredo:
		return addr4(^uint32(lo)) // the client's address, inverted
	case hi == prefixNAT64 && lo>>32 == 0:
		return addr4(uint32(lo))
	case hi == 0 && lo>>32 == prefixTranslated:
		return addr4(uint32(lo))
	case hi == 0 && lo>>32 == 0 && lo > 1: // IPv4-compatible, RFC 4291; not :: and ::1
		return addr4(uint32(lo))
	}
	return netip.Addr{}
}

// isatap returns the IPv4 address in an interface identifier of ISATAP. The
// universal/local bit and the individual/group bit may be set (RFC 4291).
func isatap(lo uint64) netip.Addr {
	if lo>>32&^0x03000000 != suffixISATAP {
		return netip.Addr{}
	}
	return addr4(uint32(lo))
}

func addr4(v uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}
