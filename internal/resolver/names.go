package resolver

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"caddytarget/internal/guard"
)

// normalName returns a name that nameservers may be asked for in normal form.
func normalName(text string) (string, error) {
	name, err := guard.NormalizeHost(text)
	if err != nil {
		return "", err
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return "", errors.New("an IP address is not a name")
	}
	if isLocalhost(name) || isOutsideDNS(name) {
		return "", errors.New("such names are never asked for (RFC 6761, RFC 7686)")
	}
	return name, nil
}

// loopback is what localhost stands for.
var loopback = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// isLocalhost reports whether a name is answered with the addresses of loopback
// (RFC 6761, section 6.3).
func isLocalhost(name string) bool {
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}

// isOutsideDNS reports whether a name is one that nameservers must not be asked for
// (RFC 6761, section 6.4; RFC 7686).
func isOutsideDNS(name string) bool {
	tld := name[strings.LastIndexByte(name, '.')+1:]
	return tld == "onion" || tld == "invalid"
}

func errOutsideDNS(name string) error {
	return fmt.Errorf("%s does not exist in the DNS (RFC 6761, RFC 7686)", name)
}
