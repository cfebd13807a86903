package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"caddytarget/internal/dnsname"
)

const (
	maxName  = dnsname.MaxLen
	maxLabel = dnsname.MaxLabel
)

var (
	errEmptyName  = errors.New("the name is empty")
	errEmptyLabel = errors.New("the name has an empty label")
	errLongName   = fmt.Errorf("the name is longer than %d octets", maxName)
	errLongLabel  = fmt.Errorf("a label is longer than %d octets", maxLabel)
	errCharacter  = errors.New("the name has a character that host names do not have")
	errNumber     = errors.New("the name ends in a number but is not an IPv4 address in dotted decimal form")
	errZone       = errors.New("addresses with a zone cannot be called")
	errUTF8       = errors.New("the name is not valid UTF-8")
	errColon      = errors.New("a colon stands only in an IPv6 address")
)

// profile is UTS 46 as browsers apply it to the host of a URL: mapped,
// non-transitional, with the Bidi and joiner rules, but with hyphens and
// underscores wherever they are, because such names are in use. Which ASCII
// characters may stand in a name is checkLabels' concern.
var profile = idna.New(
	idna.MapForLookup(),
	idna.BidiRule(),
	idna.Transitional(false),
	idna.StrictDomainName(false),
	idna.CheckHyphens(false),
)

// NormalizeHost returns the form of a host in which rules and targets are
// compared: a name in lower-case ASCII, after UTS 46, with one trailing dot
// dropped; or an IP literal, without brackets, as [netip.Addr] writes it, with
// IPv4-mapped IPv6 as IPv4.
//
// It is an error if the host is neither, which includes names with an empty
// label or other characters than letters, digits, hyphens and underscores,
// addresses with a zone, and whatever other parsers take for IPv4 addresses:
// "0x7f.1", "017700000001", "2130706433", "127.1".
//
// A host that is in this form already is returned without allocation, unless
// it has an international label.
func NormalizeHost(host string) (string, error) {
	if strings.IndexByte(host, ':') >= 0 {
		a, err := parseLiteral(host)
		if err != nil {
			return "", err
		}
		return a.Unmap().String(), nil
	}
	if !isPlain(host) {
		if err := checkUnicode(host); err != nil {
			return "", err
		}
		ascii, err := toASCII(host)
		if err != nil {
			return "", fmt.Errorf("converting the name to ASCII: %w", err)
		}
		host = ascii
	}
	host = strings.TrimSuffix(host, ".")
	if host == "" {
		return "", errEmptyName
	}
	last, err := checkLabels(host)
	if err != nil {
		return "", err
	}
	if isNumber(host[last:]) {
		if _, err := parseLiteral(host); err != nil {
			return "", err
		}
	}
	return host, nil
}

// toASCII applies the profile. It looks for letters that are written from right
// to left before mapping; so "aℵb", whose alef is a symbol until it is mapped,
// would pass, and its Punycode would not. The profile is applied again to that.
func toASCII(host string) (string, error) {
	ascii, err := profile.ToASCII(host)
	if err != nil || isPlain(ascii) {
		return ascii, err
	}
	return profile.ToASCII(ascii)
}

// isPlain reports whether UTS 46 leaves the host as it is: lower-case ASCII
// without labels in Punycode, which have to be decoded before they are checked.
func isPlain(host string) bool {
	for i := range len(host) {
		if c := host[i]; c >= 0x80 || 'A' <= c && c <= 'Z' {
			return false
		}
	}
	return !strings.Contains(host, "xn--")
}

// checkUnicode checks what has to hold before the profile is applied, which
// takes time quadratic in the length of a label (seconds for 60 kB), and puts
// U+FFFD in place of what is not UTF-8. Each character becomes an octet at
// least, but for the few that are ignored or composed; so four times the limits
// in octets leave out no name that could be valid in practice.
func checkUnicode(host string) error {
	if len(host) > utf8.UTFMax*maxName {
		return errLongName
	}
	if !utf8.ValidString(host) {
		return errUTF8
	}
	for label := range strings.FieldsFuncSeq(host, isDot) {
		if len(label) > utf8.UTFMax*maxLabel {
			return errLongLabel
		}
	}
	return nil
}

// isDot reports whether UTS 46 takes a character for the dot between labels.
func isDot(c rune) bool {
	return c == '.' || c == '\u3002' || c == '\uff0e' || c == '\uff61'
}

// checkLabels checks the form of a normalised name and returns where its last
// label begins.
func checkLabels(name string) (last int, err error) {
	if len(name) > maxName {
		return 0, errLongName
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		case c == '.':
			if err := checkLength(i - last); err != nil {
				return 0, err
			}
			last = i + 1
		default:
			return 0, errCharacter
		}
	}
	return last, checkLength(len(name) - last)
}

func checkLength(label int) error {
	if label == 0 {
		return errEmptyLabel
	}
	if label > maxLabel {
		return errLongLabel
	}
	return nil
}

// isNumber reports whether some parser of IPv4 addresses takes the last label
// of a name for a number, decimal, octal or hexadecimal; no top-level domain is
// one. A name with such a label is an IPv4 address or nothing.
func isNumber(label string) bool {
	digits, hex := strings.CutPrefix(label, "0x")
	for i := range len(digits) {
		if c := digits[i]; ('0' > c || c > '9') && (!hex || 'a' > c || c > 'f') {
			return false
		}
	}
	return true
}

// parseLiteral parses a host that cannot be anything but an IP literal.
func parseLiteral(host string) (netip.Addr, error) {
	// A zone is looked for first, since parsing one would keep it for good.
	if strings.IndexByte(host, '%') >= 0 {
		return netip.Addr{}, errZone
	}
	a, err := netip.ParseAddr(host)
	if err == nil {
		return a, nil
	}
	if strings.IndexByte(host, ':') >= 0 {
		return netip.Addr{}, errColon
	}
	return netip.Addr{}, errNumber
}

// nameFlags are what the rules say of one name.
type nameFlags uint8

const (
	allowSelf  nameFlags = 1 << iota // the name itself, from "example.com"
	allowBelow                       // the names below it, from "*.example.com"
	denySelf
	denyBelow
	metadataSelf // a metadata service that the allow list does not name
)

// metadataNames are names by which machines find the metadata services of
// clouds. What they resolve to is refused as well. But a target with such a name
// has no other purpose, so the name itself is refused.
var metadataNames = []string{
	"api.metadata.cloud.ibm.com",   // IBM Cloud
	"instance-data",                // AWS
	"instance-data.ec2.internal",   // AWS
	"metadata.azure.internal",      // Azure
	"metadata.goog",                // Google Cloud
	"metadata.google.internal",     // Google Cloud
	"metadata.packet.net",          // Equinix Metal
	"metadata.platformequinix.com", // Equinix Metal
	"metadata.tencentyun.com",      // Tencent Cloud
}

func (r *Rules) compileNames(allow, deny []string) error {
	r.names = make(map[string]nameFlags)
	r.literals = make(map[netip.Addr]nameFlags)
	r.allowAll = len(allow) == 0
	for _, entry := range allow {
		if entry == "*" {
			r.allowAll = true
		} else if err := r.addName(entry, allowSelf, allowBelow); err != nil {
			return entryError("allow", entry, err)
		}
	}
	for _, entry := range deny {
		if entry == "*" {
			r.denyAll = true
		} else if err := r.addName(entry, denySelf, denyBelow); err != nil {
			return entryError("deny", entry, err)
		}
	}
	for _, name := range metadataNames {
		if r.names[name]&allowSelf == 0 {
			r.names[name] |= metadataSelf
		}
	}
	return nil
}

// addName adds one entry of a list of names, which marks a name with one of
// the flags.
func (r *Rules) addName(entry string, self, below nameFlags) error {
	// What looks like more than a name was meant to do more than a name rule
	// can, so it gets a message of its own.
	switch {
	case strings.Contains(entry, "://"):
		return errors.New("a name has no scheme; schemes are a rule of their own")
	case strings.Contains(entry, "/"):
		return errors.New("a name has no slash; CIDRs belong in the lists of addresses")
	case strings.ContainsAny(entry, "[]"):
		return errors.New("an IP literal is written without brackets")
	case strings.Count(entry, ":") == 1:
		return errors.New("a name has no port; ports are a rule of their own")
	}

	name, wildcard := strings.CutPrefix(entry, "*.")
	if strings.Contains(name, "*") {
		return errors.New(`a wildcard stands only alone or as the whole first label, as in "*.example.com"`)
	}
	host, err := NormalizeHost(name)
	if err != nil {
		return err
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if wildcard {
			return errors.New("an IP address has nothing below it")
		}
		r.literals[a] |= self
		return nil
	}
	if wildcard {
		r.names[host] |= below
		r.depth = max(r.depth, strings.Count(host, ".")+1)
	} else {
		r.names[host] |= self
	}
	return nil
}

// CheckName reports whether targets with this host may be called. The host is
// in the form that [NormalizeHost] returns, or another spelling of an IP
// literal, without brackets; anything else is refused as malformed, only that
// labels in Punycode are not decoded again. The error is a [*Refusal].
//
// An IP literal is a name here, and its address is still to be checked.
func (r *Rules) CheckName(host string) error {
	var flags nameFlags
	if strings.IndexByte(host, ':') >= 0 {
		a, err := parseLiteral(host)
		if err != nil {
			return &Refusal{Kind: KindName, Value: host, Rule: RuleMalformed}
		}
		flags = r.literals[a.Unmap()]
	} else if last, err := checkLabels(host); err != nil {
		return &Refusal{Kind: KindName, Value: host, Rule: RuleMalformed}
	} else if isNumber(host[last:]) {
		a, err := parseLiteral(host)
		if err != nil {
			return &Refusal{Kind: KindName, Value: host, Rule: RuleMalformed}
		}
		flags = r.literals[a]
	} else {
		flags = r.nameFlags(host)
	}

	if r.denyAll || flags&(denySelf|denyBelow) != 0 {
		return &Refusal{Kind: KindName, Value: host, Rule: RuleDeny}
	}
	if flags&metadataSelf != 0 {
		return &Refusal{Kind: KindName, Value: host, Rule: RuleMetadata}
	}
	if !r.allowAll && flags&(allowSelf|allowBelow) == 0 {
		return &Refusal{Kind: KindName, Value: host, Rule: RuleAllow}
	}
	return nil
}

// nameFlags returns the flags that apply to a name: its own and those that the
// names above it have for what is below. It looks from the right, a label at a
// time, and no further than rules go, so that a name of a hundred labels costs
// no more than others.
func (r *Rules) nameFlags(name string) nameFlags {
	flags := r.names[name] & (allowSelf | denySelf | metadataSelf)
	dot := len(name)
	for range r.depth {
		if dot = strings.LastIndexByte(name[:dot], '.'); dot < 0 {
			break
		}
		flags |= r.names[name[dot+1:]] & (allowBelow | denyBelow)
	}
	return flags
}
