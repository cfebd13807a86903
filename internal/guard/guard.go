// Package guard decides whether a proxy may call a target: its name, its
// scheme, its port and each address its name resolves to. A target comes from
// the request, so all of these are hostile input.
//
// The rules are written as a [Config], compiled once into [Rules], and checked
// without locks, input or output. A check that passes allocates nothing.
//
// Without any rules these may be called:
//
//   - the schemes http and https,
//   - every well-formed name, except those of metadata services,
//   - every port, except those of certain other protocols,
//   - globally routable addresses, as the IANA special-purpose address registries
//     define them.
//
// Names and addresses are independent: a name that is allowed does not
// open the addresses behind it, and the addresses have to be checked after
// resolution, as they are dialled.
//
// Where to find what:
//
//   - guard.go: Config, schemes, ports, and the names of all rules (Refusal).
//   - names.go: the normal form of a host, the lists of names, metadata services.
//   - addrs.go: the lists of addresses, and IPv4 addresses inside of IPv6 addresses.
//   - blocks.go: the table of the IANA registries.
//   - inflight.go: max_requests, the requests in flight to each target.
package guard

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go4.org/netipx"
)

// Config is a set of rules as an operator writes them. The zero value is the
// default described in the package documentation.
type Config struct {
	// Allow lists the names that may be called: "example.com" is that name
	// alone, "*.example.com" every name below it at any depth but not
	// example.com itself, and "*" every name. An IP literal, without
	// brackets, stands for that literal when it is given as the target
	// instead of a name. An empty list allows every name and every literal;
	// one that is not empty refuses literals it does not list.
	//
	// International names may be written in Unicode or in their ASCII form;
	// letter case and one trailing dot do not matter.
	//
	// The names of metadata services of clouds, such as
	// metadata.google.internal, are refused unless an entry is that very name.
	Allow []string

	// Deny lists names that may not be called, written as in Allow. It wins
	// over Allow.
	Deny []string

	// AllowIPs lists what may be called in addition to the globally routable
	// addresses: CIDRs, single addresses, "private_ranges", and "any".
	//
	// "private_ranges" has the meaning it has elsewhere in Caddy: RFC 1918,
	// loopback, and unique local addresses, of which it takes all of fc00::/7
	// as RFC 4193 does, where Caddy lists the half that is in use, fd00::/8.
	// It does not open the addresses inside those ranges that are known to be
	// cloud metadata services, such as fd00:ec2::254; a CIDR or an address
	// does.
	//
	// "any" opens every address but the unspecified and broadcast addresses
	// and multicast. Those are never allowed, whatever is listed: no TCP
	// service can be called at a broadcast or multicast address, and a
	// connection to an unspecified one ends, on many systems, on the loopback
	// interface, past any rule about that.
	//
	// An IPv6 address with an IPv4 address in it, such as NAT64's and 6to4's,
	// is allowed only if the IPv4 address is allowed too, unless an entry
	// names such IPv6 addresses in particular: a CIDR within 2002::/16 or
	// 2001::/32, or one of at least 96 bits. An entry such as ::/0 thus does
	// not open the IPv4 address 10.0.0.1 by way of 64:ff9b::a00:1.
	AllowIPs []string

	// DenyIPs lists what may not be called: CIDRs, single addresses, and
	// "private_ranges". It wins over AllowIPs and over the default, and holds
	// for IPv4 addresses inside IPv6 addresses in any case.
	DenyIPs []string

	// Ports lists the ports that may be called, such as "443", and ranges of
	// them, such as "8000-8999". An empty list allows every port but 0 and those
	// of protocols that could take an HTTP request for one of their own, such as
	// mail and chat.
	Ports []string

	// Schemes lists the schemes that may be called, of http, https and h2c.
	// An empty list allows http and https.
	Schemes []string
}

// Compile turns the configuration into rules. Its error says which entry is
// wrong and why. The rules do not refer to the configuration afterwards.
func (c Config) Compile() (*Rules, error) {
	r := new(Rules)
	if err := r.compileNames(c.Allow, c.Deny); err != nil {
		return nil, err
	}
	if err := r.compileAddrs(c.AllowIPs, c.DenyIPs); err != nil {
		return nil, err
	}
	if err := r.compilePorts(c.Ports); err != nil {
		return nil, err
	}
	if err := r.compileSchemes(c.Schemes); err != nil {
		return nil, err
	}
	return r, nil
}

// Rules are compiled rules. They are made by [Config.Compile], are immutable,
// and may be used by any number of goroutines; the zero value may not be used.
type Rules struct {
	// names holds what the name rules say of each name they mention, and
	// literals the same for IP literals. depth is the highest number of
	// labels of a name below which a rule applies: no need to look at longer
	// suffixes.
	names             map[string]nameFlags
	literals          map[netip.Addr]nameFlags
	depth             int
	allowAll, denyAll bool

	// allowed is all that may be called, before IPv4 addresses inside IPv6
	// addresses are looked at. opened is what AllowIPs has, named the part of it
	// that names such addresses in particular, and refused what nothing can open.
	allowed, opened, named, refused *netipx.IPSet

	ports   *portSet // nil: all but badPorts
	schemes schemeSet
}

type schemeSet uint8

const (
	schemeHTTP schemeSet = 1 << iota
	schemeHTTPS
	schemeH2C
)

func parseScheme(s string) (schemeSet, bool) {
	switch s {
	case "http":
		return schemeHTTP, true
	case "https":
		return schemeHTTPS, true
	case "h2c":
		return schemeH2C, true
	}
	return 0, false
}

func (r *Rules) compileSchemes(list []string) error {
	for _, entry := range list {
		s, ok := parseScheme(strings.ToLower(entry))
		if !ok {
			return entryError("schemes", entry, fmt.Errorf("unknown scheme: want http, https or h2c"))
		}
		r.schemes |= s
	}
	if len(list) == 0 {
		r.schemes = schemeHTTP | schemeHTTPS
	}
	return nil
}

// CheckScheme reports whether targets with this scheme may be called. The
// scheme is in lower case. The error is a [*Refusal].
func (r *Rules) CheckScheme(scheme string) error {
	if s, ok := parseScheme(scheme); !ok || r.schemes&s == 0 {
		return &Refusal{Kind: KindScheme, Value: scheme, Rule: RuleSchemes}
	}
	return nil
}

func (r *Rules) compilePorts(list []string) error {
	if len(list) == 0 {
		return nil
	}
	r.ports = new(portSet)
	for _, entry := range list {
		from, to, err := parsePorts(entry)
		if err != nil {
			return entryError("ports", entry, err)
		}
		for p := int(from); p <= int(to); p++ {
			r.ports.add(uint16(p))
		}
	}
	return nil
}

// portSet has one bit a port.
type portSet [1 << 16 / 64]uint64

func (s *portSet) add(port uint16) { s[port/64] |= 1 << (port % 64) }

func (s *portSet) has(port uint16) bool { return s[port/64]&(1<<(port%64)) != 0 }

// badPorts are the "bad ports" of the Fetch standard (WHATWG), as of November 2026:
// those of text protocols that skip the lines they do not understand, so that the
// body of an HTTP request may carry commands, and of services that are in use with
// no authentication but the network's.
var badPorts = func() *portSet {
	s := new(portSet)
	for _, port := range []uint16{
		1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109, 110, 111, 113,
		115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556,
		563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667,
		6668, 6669, 6679, 6697, 10080,
	} {
		s.add(port)
	}
	return s
}()

func parsePorts(entry string) (from, to uint16, err error) {
	first, last, isRange := strings.Cut(entry, "-")
	if from, err = ParsePort(first); err != nil {
		return 0, 0, err
	}
	if !isRange {
		return from, from, nil
	}
	if to, err = ParsePort(last); err != nil {
		return 0, 0, err
	}
	if to < from {
		return 0, 0, fmt.Errorf("the range ends before it begins")
	}
	return from, to, nil
}

// ParsePort parses a port from 1 to 65535.
func ParsePort(s string) (uint16, error) {
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("port %q is not a number from 1 to 65535", s)
	}
	return uint16(port), nil
}

// CheckPort reports whether this port may be called. Port 0 never may. The
// error is a [*Refusal].
func (r *Rules) CheckPort(port uint16) error {
	var rule string
	switch {
	case port == 0 || r.ports != nil && !r.ports.has(port):
		rule = RulePorts
	case r.ports == nil && badPorts.has(port):
		rule = RuleBadPort
	default:
		return nil
	}
	return &Refusal{Kind: KindPort, Value: strconv.Itoa(int(port)), Rule: rule}
}

// entryError names the list and the entry that an error is about.
func entryError(list, entry string, err error) error {
	return fmt.Errorf("%s: entry %q: %w", list, entry, err)
}

// What a [Refusal] is about.
const (
	KindName    = "name"
	KindScheme  = "scheme"
	KindPort    = "port"
	KindAddress = "address"
)

// The rules that a [Refusal] can name. The first group are the operator's
// lists, the others the rules that hold by default.
const (
	RuleAllow   = "allow"    // the allow list does not have the name
	RuleDeny    = "deny"     // the deny list has the name
	RuleSchemes = "schemes"  // the scheme is not among the allowed ones
	RulePorts   = "ports"    // the port is not among the allowed ones
	RuleDenyIPs = "deny_ips" // the list of denied addresses has the address

	RuleMalformed = "malformed" // neither a host name in normal form nor an IP literal

	RuleBadPort       = "bad_port"      // a port of another protocol, and no ports are listed
	RuleInvalid       = "invalid"       // the zero netip.Addr
	RuleZone          = "zone"          // an address with a zone identifier
	RuleUnspecified   = "unspecified"   // 0.0.0.0 and ::
	RuleBroadcast     = "broadcast"     // 255.255.255.255
	RuleMulticast     = "multicast"     // 224.0.0.0/4 and ff00::/8
	RuleMetadata      = "metadata"      // well-known names and addresses of metadata services of clouds
	RuleOwnListener   = "own_listener"  // this server itself listens there, for a site
	RuleAdmin         = "admin"         // this server itself listens there, for other things: the admin API
	RuleLoopback      = "loopback"      // 127.0.0.0/8 and ::1
	RulePrivate       = "private"       // RFC 1918, unique local and site-local addresses
	RuleLinkLocal     = "link_local"    // 169.254.0.0/16 and fe80::/10
	RuleShared        = "shared"        // 100.64.0.0/10, carrier-grade NAT
	RuleThisNetwork   = "this_network"  // 0.0.0.0/8
	RuleProtocol      = "protocol"      // set aside for protocols of the IETF
	RuleDocumentation = "documentation" // used in examples
	RuleBenchmarking  = "benchmarking"  // used in tests of network devices
	RuleTransition    = "transition"    // Teredo, local NAT64 and other forms of IPv4 in IPv6
	RuleReserved      = "reserved"      // not assigned for general use
)

// ruleTexts has every rule, with how a message puts it after "it is".
var ruleTexts = []struct{ rule, text string }{
	{RuleAllow, "not in the allow list"},
	{RuleDeny, "in the deny list"},
	{RuleSchemes, "not an allowed scheme"},
	{RulePorts, "not an allowed port"},
	{RuleDenyIPs, "in the list of denied addresses"},
	{RuleMalformed, "neither a host name nor an IP address"},
	{RuleBadPort, "one of another protocol than HTTP, and not listed in ports"},
	{RuleInvalid, "not a valid address"},
	{RuleZone, "an address with a zone"},
	{RuleUnspecified, "the unspecified address"},
	{RuleBroadcast, "the broadcast address"},
	{RuleMulticast, "a multicast address"},
	{RuleMetadata, "a metadata service"},
	{RuleOwnListener, "where this server itself listens"},
	{RuleAdmin, "where this server itself listens, for its admin API or another app than HTTP"},
	{RuleLoopback, "a loopback address"},
	{RulePrivate, "a private address"},
	{RuleLinkLocal, "a link-local address"},
	{RuleShared, "a shared address of a carrier-grade NAT"},
	{RuleThisNetwork, "an address of this network"},
	{RuleProtocol, "set aside for a protocol"},
	{RuleDocumentation, "an address for documentation"},
	{RuleBenchmarking, "an address for benchmarking"},
	{RuleTransition, "an address of an IPv6 transition mechanism"},
	{RuleReserved, "not a globally routable address"},
}

// RefusalRules returns every value that [Refusal.Rule] can have, in a fixed
// order, so that counters can be made for all of them in advance.
func RefusalRules() []string {
	rules := make([]string, len(ruleTexts))
	for i, t := range ruleTexts {
		rules[i] = t.rule
	}
	return rules
}

// Refusal is the error of the Check methods: something may not be called.
type Refusal struct {
	// Kind is what was checked, one of the Kind constants.
	Kind string

	// Value is what was refused, as it was given. It may be hostile.
	Value string

	// Rule is why, one of the Rule constants. The set is closed, so that the
	// rule may be the label of a metric; see [RefusalRules].
	Rule string

	// Embedded is the IPv4 address inside a refused IPv6 address, if it is
	// the IPv4 address that the rule refuses. It is the zero value otherwise.
	Embedded netip.Addr
}

// Error describes the refusal in one line; the value is quoted where it could
// be anything.
func (e *Refusal) Error() string {
	text := "against the rules"
	if i := slices.IndexFunc(ruleTexts, func(t struct{ rule, text string }) bool { return t.rule == e.Rule }); i >= 0 {
		text = ruleTexts[i].text
	}
	value := e.Value
	if e.Kind == KindName || e.Kind == KindScheme {
		value = strconv.Quote(value)
	}
	if e.Embedded.IsValid() {
		return fmt.Sprintf("%s %s is refused: it embeds %s, which is %s", e.Kind, value, e.Embedded, text)
	}
	return fmt.Sprintf("%s %s is refused: it is %s", e.Kind, value, text)
}

// Interface guard
var _ error = (*Refusal)(nil)
