package targeturl

import "strings"

// encode percent-encodes the octets that are not allowed in a part of a URL. It keeps all
// others, and what is percent-encoded already.
func encode(s string, allowed func(byte) bool) string {
	clean := true
	for i := 0; i < len(s) && clean; i++ {
		clean = allowed(s[i])
	}
	if clean {
		return s
	}
	const hex = "0123456789ABCDEF"
	b := make([]byte, 0, len(s)+8)
	for i := range len(s) {
		c := s[i]
		if allowed(c) || c == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]) {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
	}
	return string(b)
}

// encodeQuery is encode for a query, where a bare percent sign stays: queries hold macros
// such as %%CACHEBUSTER%%, and servers accept them.
func encodeQuery(s string) string {
	return encode(s, func(c byte) bool { return isQueryByte(c) || c == '%' })
}

// EncodeURI percent-encodes the octets of a path and a query that are not allowed there.
func EncodeURI(s string) string {
	path, query, ok := strings.Cut(s, "?")
	if path = encode(path, isQueryByte); !ok {
		return path
	}
	return path + "?" + encodeQuery(query)
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isHex(c byte) bool {
	return isDigit(c) || c|0x20 >= 'a' && c|0x20 <= 'f'
}

// isPathByte reports whether c is a pchar or a slash (RFC 3986, section 3.3), or a square
// bracket, which clients do not encode.
func isPathByte(c byte) bool {
	return c|0x20 >= 'a' && c|0x20 <= 'z' || isDigit(c) || strings.IndexByte("-._~!$&'()*+,;=:@/[]", c) >= 0
}

// isQueryByte reports whether c is allowed in a query (RFC 3986, section 3.4), or is one of
// the characters there that clients do not encode.
func isQueryByte(c byte) bool {
	return isPathByte(c) || strings.IndexByte("?|{}^`", c) >= 0
}
