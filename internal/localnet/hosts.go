package localnet

import (
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// listenHosts returns the hosts that a configuration is likely to have for a listener that
// accepts connections to an address of this machine: the address, all addresses, and the
// names of this machine, in their usual spellings.
func listenHosts(a netip.Addr) []string {
	// a listener on a name of this machine may be on any of its addresses; and with the
	// network tcp, 0.0.0.0 includes IPv6
	hosts := slices.Concat(spellings(a), allAddresses, machineNames())
	if a.IsLoopback() {
		hosts = append(hosts, "localhost", "LOCALHOST", "Localhost")
	}
	return hosts
}

// allAddresses are the spellings of the host of a listener on all addresses.
var allAddresses = append([]string{"", "0.0.0.0", "::ffff:0.0.0.0"}, spellings(netip.IPv6Unspecified())...)

// spellings returns the usual spellings of an address.
func spellings(a netip.Addr) []string {
	list := []string{a.String()}
	if a.Is4() {
		mapped := netip.AddrFrom16(a.As16())
		return append(list, mapped.String(), mapped.StringExpanded())
	}
	var groups []string
	in := a.As16()
	for i := 0; i < len(in); i += 2 {
		groups = append(groups, strconv.FormatUint(uint64(in[i])<<8|uint64(in[i+1]), 16))
	}
	long := strings.Join(groups, ":")
	list = append(list, a.StringExpanded(), long, strings.ToUpper(list[0]), strings.ToUpper(long))
	if a.IsUnspecified() {
		list = append(list, "::0", "0::0", "0::")
	}
	return list
}

// machineNames returns the names of this machine: the full one and its first label.
func machineNames() []string {
	name, err := os.Hostname()
	if err != nil {
		return nil
	}
	short, _, _ := strings.Cut(name, ".")
	return []string{name, short}
}
