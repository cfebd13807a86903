package failure

import (
	"net/http"
	"slices"
	"strings"
)

// proxyStatus is the field of RFC 9209, and proxyName the name of this proxy in it.
const (
	proxyStatus = "Proxy-Status"
	proxyName   = "caddytarget"
)

// SetProxyStatus adds what failed to the Proxy-Status of a response that this server
// makes itself (RFC 9209), in place of what it said before. details, if not empty, is a
// text for people.
func (f Failure) SetProxyStatus(header http.Header, details string) {
	DropProxyStatus(header)
	var b strings.Builder
	b.WriteString(proxyName + "; error=" + string(f.Token))
	if f.Rcode != "" {
		b.WriteString("; rcode=" + quote(f.Rcode))
	}
	if details != "" {
		b.WriteString("; details=" + quote(details))
	}
	header[proxyStatus] = append(header[proxyStatus], b.String())
}

// quote returns a text as a String of structured fields (RFC 9651, section 3.3.3), which
// has printable ASCII characters alone.
func quote(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r > '~':
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// DropProxyStatus deletes the members of Proxy-Status that have the name of this proxy:
// a backend must not speak for it. The members of others stay, in their order. A field
// that cannot be read is deleted as a whole if it has the name anywhere.
func DropProxyStatus(fields http.Header) {
	values, ok := fields[proxyStatus]
	if !ok {
		return
	}
	if !slices.ContainsFunc(values, hasName) {
		return
	}
	members, ok := splitList(strings.Join(values, ","))
	if !ok {
		delete(fields, proxyStatus)
		return
	}
	kept := slices.DeleteFunc(members, func(member string) bool {
		name, _, _ := strings.Cut(member, ";")
		return strings.EqualFold(strings.Trim(name, "\" \t"), proxyName)
	})
	if len(kept) == 0 {
		delete(fields, proxyStatus)
		return
	}
	fields[proxyStatus] = kept
}

func hasName(value string) bool { return strings.Contains(strings.ToLower(value), proxyName) }

// splitList returns the members of a List of structured fields (RFC 9651, section 3.1).
// It does not check more of them than where they end. ok is false if a String does not
// end, or an Inner List.
func splitList(s string) (members []string, ok bool) {
	start, inString, inList := 0, false, false
	add := func(end int) {
		if member := strings.Trim(s[start:end], " \t"); member != "" {
			members = append(members, member)
		}
		start = end + 1
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '(':
			inList = true
		case c == ')':
			inList = false
		case c == ',' && !inList:
			add(i)
		}
	}
	if inString || inList {
		return nil, false
	}
	add(len(s))
	return members, true
}
