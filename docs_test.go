package caddytarget

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
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
	for _, file := range pages(t) {
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

// pages returns all pages of the documentation, README.md first.
func pages(t *testing.T) []string {
	t.Helper()
	files := []string{"README.md", "CHANGELOG.md", "CONTRIBUTING.md"}
	for _, pattern := range []string{"docs/*.md", "docs/guides/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("no %s: %v", pattern, err)
		}
		files = append(files, found...)
	}
	return files
}

// readmeLimit is how long the README may be, in octets.
const readmeLimit = 14 << 10

func TestReadmeIsShort(t *testing.T) {
	if n := len(readFile(t, "README.md")); n > readmeLimit {
		t.Errorf("README.md has %d octets, want %d at most", n, readmeLimit)
	}
}

// TestLinks checks that the links of the documentation lead to files and headings that are
// there, and that links lead from the README to all pages.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^()\s]+)\)`)
	reached := make(map[string][]string) // pages, by the page with the link
	n := 0
	for _, file := range pages(t) {
		for _, match := range link.FindAllStringSubmatch(withoutCode(readFile(t, file)), -1) {
			n++
			if strings.HasPrefix(match[1], "https://") {
				continue
			}
			path, anchor, _ := strings.Cut(match[1], "#")
			to := file
			if path != "" {
				to = filepath.Join(filepath.Dir(file), path)
			}
			info, err := os.Stat(to)
			switch {
			case err != nil:
				t.Errorf("%s: link to %s: %v", file, match[1], err)
			case anchor == "":
			case info.IsDir() || filepath.Ext(to) != ".md":
				t.Errorf("%s: link to %s: only pages have headings", file, match[1])
			case !slices.Contains(anchors(readFile(t, to)), anchor):
				t.Errorf("%s: link to %s: there is no such heading", file, match[1])
			}
			reached[file] = append(reached[file], to)
		}
	}
	if n < 100 {
		t.Errorf("got %d links, want many", n)
	}
	seen := make(map[string]bool)
	next := []string{"README.md"}
	for len(next) > 0 {
		file := next[0]
		next = next[1:]
		if !seen[file] {
			seen[file] = true
			next = append(next, reached[file]...)
		}
	}
	for _, file := range pages(t) {
		if !seen[file] {
			t.Errorf("no link leads from README.md to %s", file)
		}
	}
}

// withoutCode leaves out blocks of code and what stands between backquotes, which are no
// links.
func withoutCode(text string) string {
	text = regexp.MustCompile("(?ms)^```.*?^```$").ReplaceAllString(text, "")
	return regexp.MustCompile("`[^`\n]*`").ReplaceAllString(text, "code")
}

// anchors returns the anchors of the headings of a page, as GitHub makes them.
func anchors(text string) (list []string) {
	seen := make(map[string]int)
	text = regexp.MustCompile("(?ms)^```.*?^```$").ReplaceAllString(text, "")
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		anchor := strings.ToLower(regexp.MustCompile(`\[([^]]*)\]\([^)]*\)`).ReplaceAllString(heading[1], "$1"))
		anchor = strings.ReplaceAll(regexp.MustCompile(`[^\p{L}\p{N}_ -]`).ReplaceAllString(anchor, ""), " ", "-")
		if before := seen[anchor]; before > 0 {
			list = append(list, anchor+"-"+strconv.Itoa(before))
		} else {
			list = append(list, anchor)
		}
		seen[anchor]++
	}
	return list
}

// TestStates checks that the picture of the states of an address has their names.
func TestStates(t *testing.T) {
	picture := readFile(t, "docs/states.svg")
	states := words(strings.Join(words(readFile(t, "internal/health/state.go"), `stateNames = \[...\]string\{(.*)\}`), ""), `"(\w+)"`)
	if len(states) != 4 {
		t.Errorf("got the states %v, want four", states)
	}
	for _, state := range states {
		if !strings.Contains(picture, ">"+state+"</text>") {
			t.Errorf("docs/states.svg does not have %s", state)
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
