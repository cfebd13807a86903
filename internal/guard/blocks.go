package guard

import "net/netip"

// A block is a range of addresses with the rule that refuses it, or none if it
// is globally routable.
type block struct {
	prefix netip.Prefix
	rule   string
}

// blocks defines which addresses are globally routable. The longest prefix that
// has an address decides, as in a routing table.
//
// The rows are those of the IANA IPv4 and IPv6 Special-Purpose Address
// Registries, as of October 2025, with their column "Globally Reachable", and a
// few that those leave to other registries: multicast, what is not global
// unicast, and metadata services of clouds that have well-known addresses.
// The IPv4-mapped block ::ffff:0:0/96 is missing, because such addresses are
// checked as IPv4.
var blocks = []block{
	// IPv4
	global("0.0.0.0/0"),                          // RFC 791
	refuse("0.0.0.0/8", RuleThisNetwork),         // RFC 791, "this network"
	refuse("0.0.0.0/32", RuleUnspecified),        // RFC 1122, "this host on this network"
	refuse("10.0.0.0/8", RulePrivate),            // RFC 1918
	refuse("100.64.0.0/10", RuleShared),          // RFC 6598
	refuse("127.0.0.0/8", RuleLoopback),          // RFC 1122
	refuse("169.254.0.0/16", RuleLinkLocal),      // RFC 3927
	refuse("172.16.0.0/12", RulePrivate),         // RFC 1918
	refuse("192.0.0.0/24", RuleProtocol),         // RFC 6890, IETF protocol assignments
	refuse("192.0.0.0/29", RuleProtocol),         // RFC 7335, IPv4 service continuity (DS-Lite, 464XLAT)
	refuse("192.0.0.8/32", RuleProtocol),         // RFC 7600, IPv4 dummy address
	global("192.0.0.9/32"),                       // RFC 7723, Port Control Protocol anycast
	global("192.0.0.10/32"),                      // RFC 8155, TURN anycast
	refuse("192.0.0.170/31", RuleProtocol),       // RFC 8880 and RFC 7050, NAT64/DNS64 discovery
	refuse("192.0.2.0/24", RuleDocumentation),    // RFC 5737, TEST-NET-1
	global("192.31.196.0/24"),                    // RFC 7535, AS112-v4
	global("192.52.193.0/24"),                    // RFC 7450, AMT
	refuse("192.88.99.0/24", RuleTransition),     // RFC 7526, deprecated 6to4 relay anycast
	refuse("192.88.99.2/32", RuleTransition),     // RFC 6751, 6a44 relay anycast
	refuse("192.168.0.0/16", RulePrivate),        // RFC 1918
	global("192.175.48.0/24"),                    // RFC 7534, direct delegation AS112 service
	refuse("198.18.0.0/15", RuleBenchmarking),    // RFC 2544
	refuse("198.51.100.0/24", RuleDocumentation), // RFC 5737, TEST-NET-2
	refuse("203.0.113.0/24", RuleDocumentation),  // RFC 5737, TEST-NET-3
	refuse("224.0.0.0/4", RuleMulticast),         // RFC 5771
	refuse("240.0.0.0/4", RuleReserved),          // RFC 1112
	refuse("255.255.255.255/32", RuleBroadcast),  // RFC 919 and RFC 8190
	refuse("100.100.100.200/32", RuleMetadata),   // Alibaba Cloud
	refuse("168.63.129.16/32", RuleMetadata),     // Azure's wire server, in public space but in every virtual network
	refuse("169.254.169.254/32", RuleMetadata),   // AWS, Azure, Google Cloud, Oracle Cloud, OpenStack and others
	refuse("169.254.170.2/32", RuleMetadata),     // AWS, credentials of ECS tasks
	refuse("169.254.170.23/32", RuleMetadata),    // AWS, credentials of EKS pods
	refuse("192.0.0.192/32", RuleMetadata),       // Oracle Cloud Classic

	// IPv6
	refuse("::/0", RuleReserved),                // RFC 4291: only 2000::/3 is assigned as global unicast
	global("2000::/3"),                          // RFC 4291
	refuse("::/128", RuleUnspecified),           // RFC 4291
	refuse("::1/128", RuleLoopback),             // RFC 4291
	refuse("::/96", RuleTransition),             // RFC 4291, deprecated IPv4-compatible addresses
	refuse("::ffff:0:0:0/96", RuleTransition),   // RFC 2765, obsolete IPv4-translated addresses
	global("64:ff9b::/96"),                      // RFC 6052, NAT64; the IPv4 address inside is checked as well
	refuse("64:ff9b:1::/48", RuleTransition),    // RFC 8215, local-use NAT64
	refuse("100::/64", RuleReserved),            // RFC 6666, discard-only
	refuse("100:0:0:1::/64", RuleReserved),      // RFC 9780, dummy prefix
	refuse("2001::/23", RuleProtocol),           // RFC 2928, IETF protocol assignments
	refuse("2001::/32", RuleTransition),         // RFC 4380, Teredo
	global("2001:1::1/128"),                     // RFC 7723, Port Control Protocol anycast
	global("2001:1::2/128"),                     // RFC 8155, TURN anycast
	global("2001:1::3/128"),                     // RFC 9665, DNS-SD service registration anycast
	refuse("2001:2::/48", RuleBenchmarking),     // RFC 5180
	global("2001:3::/32"),                       // RFC 7450, AMT
	global("2001:4:112::/48"),                   // RFC 7535, AS112-v6
	refuse("2001:10::/28", RuleProtocol),        // RFC 4843, deprecated ORCHID
	global("2001:20::/28"),                      // RFC 7343, ORCHIDv2
	global("2001:30::/28"),                      // RFC 9374, drone remote identification
	refuse("2001:db8::/32", RuleDocumentation),  // RFC 3849
	global("2002::/16"),                         // RFC 3056, 6to4; the IPv4 address inside is checked as well
	global("2620:4f:8000::/48"),                 // RFC 7534, direct delegation AS112 service
	refuse("3fff::/20", RuleDocumentation),      // RFC 9637
	refuse("5f00::/16", RuleReserved),           // RFC 9602, SRv6 segment identifiers
	refuse("fc00::/7", RulePrivate),             // RFC 4193, unique local
	refuse("fe80::/10", RuleLinkLocal),          // RFC 4291
	refuse("fec0::/10", RulePrivate),            // RFC 3879, deprecated site-local
	refuse("ff00::/8", RuleMulticast),           // RFC 4291
	refuse("fd00:ec2::254/128", RuleMetadata),   // AWS
	refuse("fd00:ec2::23/128", RuleMetadata),    // AWS, credentials of EKS pods
	refuse("fd20:ce::254/128", RuleMetadata),    // Google Cloud
	refuse("fe80::a9fe:a9fe/128", RuleMetadata), // OpenStack
}

func global(prefix string) block { return refuse(prefix, "") }

func refuse(prefix, rule string) block {
	return block{prefix: netip.MustParsePrefix(prefix), rule: rule}
}

// blockOf returns the block that decides about an address, which is not an
// IPv4-mapped one. It is not for the hot path.
func blockOf(a netip.Addr) block {
	var best block
	for _, b := range blocks {
		if b.prefix.Contains(a) && (!best.prefix.IsValid() || b.prefix.Bits() > best.prefix.Bits()) {
			best = b
		}
	}
	return best
}
