package admin

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestPrintable checks both escapes of hostile text.
func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":                   "",
		"a \"b\" \\":         "a \"b\" \\",
		"\x1b[1m\x00\n\x7f":  `\x1b[1m\x00\n\x7f`,
		"\u009b\u202e":       `\u009b\u202e`,
		"é\U0001f600\xff":    `\u00e9\U0001f600\xff`,
		"\xed\xa0\x80\ufffd": `\xed\xa0\x80\ufffd`,
	} {
		if got := Printable(in); got != want {
			t.Errorf("Printable(%q): got %s, want %s", in, got, want)
		}
		text, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		ascii := ASCIIJSON(text)
		var got, same string
		if json.Unmarshal(ascii, &got) != nil || json.Unmarshal(text, &same) != nil || got != same || strings.ContainsFunc(string(ascii), func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("ASCIIJSON(%q): got %q, want printable ASCII that reads the same", text, ascii)
		}
	}
}
