package admin

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Printable returns a text in which all but printable ASCII is escaped as in Go, so
// that it cannot control a terminal.
func Printable(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r < ' ' || r > '~':
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		default:
			b.WriteRune(r)
		}
		s = s[size:]
	}
	return b.String()
}

// ASCIIJSON escapes all but printable ASCII in valid JSON, where it can only be in
// strings. encoding/json leaves DEL and the control characters of ISO 8859 as they are.
func ASCIIJSON(text []byte) []byte {
	if !slices.ContainsFunc(text, func(b byte) bool { return b > '~' }) {
		return text
	}
	ascii := make([]byte, 0, 2*len(text))
	for _, r := range string(text) {
		switch {
		case r <= '~':
			ascii = append(ascii, byte(r))
		case r <= 0xffff:
			ascii = fmt.Appendf(ascii, `\u%04x`, r)
		default:
			r -= 0x10000
			ascii = fmt.Appendf(ascii, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		}
	}
	return ascii
}

// inSeconds returns a duration in seconds, to the millisecond.
func inSeconds(d time.Duration) float64 { return d.Round(time.Millisecond).Seconds() }

// precisely returns a duration in seconds, to the microsecond.
func precisely(d time.Duration) float64 { return d.Round(time.Microsecond).Seconds() }

// secondsOf returns a duration in seconds, to the millisecond, which is not 0 unless the
// duration is: 0 is left out.
func secondsOf(d time.Duration) float64 {
	if d > 0 {
		d = max(d, time.Millisecond)
	}
	return inSeconds(d)
}
