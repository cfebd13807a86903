package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// write writes files, in pairs of name and text.
func write(t *testing.T, dir string, files ...string) {
	t.Helper()
	for pair := range slices.Chunk(files, 2) {
		path := filepath.Join(dir, pair[0])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(pair[1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHashInputs checks that the hash changes with all that a binary is made of, and with
// nothing else.
func TestHashInputs(t *testing.T) {
	dir := t.TempDir()
	write(t, dir,
		"go.mod", "module example\n\ngo 1.26\n",
		"a.go", "package example\n\nimport (\n\t_ \"embed\"\n\t_ \"example/internal/b\"\n)\n\n//go:embed page.html\nvar page string\n",
		"page.html", "a page",
		"a_test.go", "package example\n",
		"internal/b/b.go", "package b\n",
		"bench/main.go", "package main\n",
		"README.md", "a text")
	hash := func() string {
		t.Helper()
		h, err := hashInputs([]byte("{}"), []string{dir})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	for _, test := range []struct {
		file, text string
		changes    bool
	}{
		{"a_test.go", "package example\n\n// changed\n", false},
		{"bench/main.go", "package main\n\n// changed\n", false},
		{"README.md", "another text", false},
		{"page.html", "another page", true},
		{"internal/b/b.go", "package b\n\n// changed\n", true},
		{"internal/b/c.go", "package b\n", true},
		{"go.mod", "module example\n\n// changed\n\ngo 1.26\n", true},
		{"go.sum", "", true},
	} {
		before := hash()
		if again := hash(); again != before {
			t.Fatalf("got the hashes %s and %s of the same files", before, again)
		}
		write(t, dir, test.file, test.text)
		if changed := hash() != before; changed != test.changes {
			t.Errorf("%s: the hash has changed: %v, want %v", test.file, changed, test.changes)
		}
	}
	before := hash()
	if other, err := hashInputs([]byte("{ }"), []string{dir}); err != nil || other == before {
		t.Errorf("got the hash %s with another xcaddy.json, want another one (%v)", other, err)
	}
	t.Setenv("GOARCH", map[bool]string{true: "amd64", false: "arm64"}[os.Getenv("GOARCH") == "arm64"])
	t.Setenv("GOOS", "freebsd")
	if hash() == before {
		t.Errorf("got the hash %s for another system, want another one", before)
	}
	write(t, dir, "a.go", "no Go")
	if h, err := hashInputs(nil, []string{dir}); err == nil {
		t.Errorf("got the hash %s of a file that is no Go, want an error", h)
	}
}

// TestIsBuiltFrom checks that only the binary that was recorded is taken for up to date.
func TestIsBuiltFrom(t *testing.T) {
	t.Chdir(t.TempDir())
	check := func(what, inputs string, want bool) {
		t.Helper()
		if got := isBuiltFrom("caddy", inputs); got != want {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	check("nothing is there", "1", false)
	write(t, ".", "caddy", "a binary")
	check("a binary of unknown inputs", "1", false)
	if err := recordInputs("caddy", "1"); err != nil {
		t.Fatal(err)
	}
	check("the same inputs", "1", true)
	check("other inputs", "2", false)
	write(t, ".", "caddy", "another binary")
	check("a binary that was built otherwise", "1", false)
	write(t, ".", ".caddy.built", "no JSON")
	check("a damaged record", "1", false)
	if err := os.Remove("caddy"); err != nil {
		t.Fatal(err)
	}
	if err := recordInputs("caddy", "1"); err == nil {
		t.Error("a binary that is not there: got no error")
	}
}
