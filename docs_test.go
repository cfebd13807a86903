package caddytarget

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"caddytarget/internal/testlab"
)

// TestDocs checks that the Caddyfiles in the documentation can be used.
func TestDocs(t *testing.T) {
	certFile, keyFile := testlab.NewAuthority(t).Files(t, "gateway.example")
	for name, file := range map[string]string{"SERVER_CERT": certFile, "SERVER_KEY": keyFile, "CLIENT_CA": certFile} {
		t.Setenv(name, file) // the defaults are where operators have them
	}
	guides, err := filepath.Glob("docs/guides/*.md")
	if err != nil || len(guides) == 0 {
		t.Fatalf("no guides: %v", err)
	}
	for _, file := range append(guides, "README.md", "docs/security.md", "docs/operating.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, config := range caddyfilesIn(string(text)) {
			if formatted := string(caddyfile.Format([]byte(config))); formatted != config {
				t.Errorf("%s: caddy fmt makes this of it:\n%s", file, formatted)
			}
			if !strings.HasPrefix(config, ":") && !strings.HasPrefix(config, "{") && !strings.HasPrefix(config, "http") {
				config = ":8080 {\n" + config + "}\n"
			}
			adapted, warnings, err := adaptText(config)
			if err != nil || len(warnings) > 1 { // of a part of a Caddyfile, one is that of its format
				t.Errorf("%s: %v %v\n%s", file, err, warnings, config)
				continue
			}
			if err := validateJSON(t, adapted); err != nil {
				t.Errorf("%s: not valid: %v\n%s", file, err, config)
			}
		}
	}
}

// TestSecurityDocs checks that the tests that docs/security.md names are there.
func TestSecurityDocs(t *testing.T) {
	text, err := os.ReadFile("docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	err = filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		source.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_, attacks, _ := strings.Cut(string(text), "| attack |")
	attacks, _, _ = strings.Cut(attacks, "\n\n")
	names := regexp.MustCompile(`\b(Test|Fuzz)\w+`).FindAllString(attacks, -1)
	for _, quoted := range regexp.MustCompile(`"([^"]+)"`).FindAllStringSubmatch(attacks, -1) {
		names = append(names, quoted[1])
	}
	if len(names) < 30 {
		t.Fatalf("only %d tests are named: %v", len(names), names)
	}
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
		want := "func " + name + "("
		if !strings.HasPrefix(name, "Test") && !strings.HasPrefix(name, "Fuzz") {
			part, begins := strings.CutSuffix(name, " …")
			if want = `kind: "` + part; !begins {
				want += `"`
			}
		}
		if !strings.Contains(source.String(), want) {
			t.Errorf("there is no %s", name)
		}
	}
}
