package targeturl

import (
	"errors"
	"strings"
)

// Confinement keeps the value of a placeholder below the folder in which the placeholder
// stands in a template. The zero value does not.
//
// The caller expands the template with values that went through [Mark], and hands the result
// to [Confinement.Unmark].
type Confinement struct {
	// pathStart returns where the path begins in the expanded template. It is nil if no
	// placeholder stands in a path.
	pathStart func(s string) int
}

// ConfinePath returns the confinement of a template of a path.
func ConfinePath(template string) Confinement {
	if !strings.Contains(template, "{") {
		return Confinement{}
	}
	return Confinement{func(string) int { return 0 }}
}

// ConfineURL returns the confinement of a template of a URL. A placeholder before the path of
// the template may bring a path of its own.
func ConfineURL(template string) Confinement {
	if !strings.Contains(template[authorityEnd(template):], "{") {
		return Confinement{}
	}
	return Confinement{authorityEnd}
}

// IsZero reports whether there is nothing to check.
func (c Confinement) IsZero() bool { return c.pathStart == nil }

// authorityEnd returns where the authority of a URL ends.
func authorityEnd(s string) int {
	start := 0
	if i := strings.Index(s, "://"); i >= 0 {
		start = i + len("://")
	}
	if i := strings.IndexByte(s[start:], '/'); i >= 0 {
		return start + i
	}
	return len(s)
}

var errLeavesFolder = errors.New("a placeholder's value leaves the folder of the template by dot segments")

// valueStart and valueEnd enclose a value in an expanded template. No target has them.
const (
	valueStart = "\x01"
	valueEnd   = "\x02"
)

// Mark encloses a value in marks, for [Confinement.Unmark]. It is an error if the value has
// octets that no URL has.
func Mark(value string) (string, error) {
	if err := CheckBytes(value); err != nil {
		return "", err
	}
	return valueStart + value + valueEnd, nil
}

// Unmark removes the marks from an expanded template. It is an error if a value leaves its
// folder.
func (c Confinement) Unmark(marked string) (string, error) {
	var (
		text   strings.Builder
		values [][2]int // where they begin and end
	)
	for i := range len(marked) {
		switch marked[i : i+1] {
		case valueStart:
			values = append(values, [2]int{text.Len(), text.Len()})
		case valueEnd:
			if len(values) > 0 {
				values[len(values)-1][1] = text.Len()
			}
		default:
			text.WriteByte(marked[i])
		}
	}
	s := text.String()
	path := s
	if i := strings.IndexAny(s, "?#"); i >= 0 {
		path = s[:i]
	}
	start := c.pathStart(path)
	for _, v := range values {
		if v[0] < start || v[0] > len(path) {
			continue
		}
		folder := max(start, strings.LastIndexByte(path[:v[0]], '/')+1)
		if strings.Trim(path[start:folder], "/") == "" {
			continue // the root has no folder above it
		}
		end := min(v[1], len(path))
		if n := strings.IndexByte(path[end:], '/'); n >= 0 {
			end += n
		} else {
			end = len(path)
		}
		if leavesFolder(path[folder:end]) {
			return "", errLeavesFolder
		}
	}
	return s, nil
}

// leavesFolder reports whether a relative path leads out of the folder to which it is
// relative. Dots and slashes that are percent-encoded count, since some servers decode them
// first.
func leavesFolder(path string) bool {
	if !strings.Contains(path, ".") && !strings.Contains(path, "%") {
		return false
	}
	depth := 0
	for segment := range strings.SplitSeq(decodeSegments.Replace(path), "/") {
		switch segment, _, _ = strings.Cut(segment, ";"); segment {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return true
			}
		default:
			depth++
		}
	}
	return false
}

// decodeSegments decodes the dots and slashes of a path, also those that are encoded twice.
// A backslash counts as a slash.
var decodeSegments = strings.NewReplacer(
	"%2e", ".", "%2E", ".", "%252e", ".", "%252E", ".",
	"%2f", "/", "%2F", "/", "%252f", "/", "%252F", "/",
	"%5c", "/", "%5C", "/", "%255c", "/", "%255C", "/",
)
