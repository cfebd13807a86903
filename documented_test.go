package caddytarget

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"caddytarget/internal/testlab"
)

// The Caddyfiles of examples, docs/guides and deploy are run as they stand there, but for
// the ports and addresses of servers.

// documented is a Caddyfile of the repository that a gateway runs.
type documented struct {
	*world
	logFile string
	logged  int // how many lines of the access log were returned
}

// swap is a part of a Caddyfile and what a test has in its place.
type swap struct{ part, instead string }

// readCaddyfile returns the text of a Caddyfile, or a Caddyfile in a Markdown file: the
// first one, that is the complete one of a guide, or the second one of FILE#2.
func readCaddyfile(t testing.TB, file string) string {
	t.Helper()
	file, second := strings.CutSuffix(file, "#2")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Ext(file) != ".md" {
		return string(text)
	}
	blocks := caddyfilesIn(string(text))
	if second && len(blocks) > 1 {
		return blocks[1]
	}
	if second || len(blocks) == 0 {
		t.Fatalf("%s has %d Caddyfiles", file, len(blocks))
	}
	return blocks[0]
}

// caddyfilesIn returns the Caddyfiles in the text of a Markdown file.
func caddyfilesIn(text string) (configs []string) {
	for _, block := range regexp.MustCompile("(?s)```caddyfile\n(.*?)```").FindAllStringSubmatch(text, -1) {
		configs = append(configs, block[1])
	}
	return configs
}

// runDocumented runs a Caddyfile of the repository. Each swap has to find its part. LOGFILE
// in one is where the test reads the log.
func runDocumented(t *testing.T, file string, w *world, swaps ...swap) *documented {
	t.Helper()
	text := readCaddyfile(t, file)
	for _, s := range swaps {
		if !strings.Contains(text, s.part) {
			t.Fatalf("%s does not have %q", file, s.part)
		}
		text = strings.ReplaceAll(text, s.part, s.instead)
	}
	d := &documented{world: w, logFile: filepath.Join(t.TempDir(), "log")}
	text = strings.ReplaceAll(text, "LOGFILE", strconv.Quote(d.logFile))
	options, found := strings.CutPrefix(strings.TrimSpace(withoutComments(text)), "{\n")
	if !found {
		options = "}\n" + options
	}
	if !strings.Contains(text, "resolver") { // the system's is not for tests
		options = "target {\nresolver " + w.nameserver() + "\n}\n}\n" + options
	}
	config, err := adapt(fmt.Sprintf(`{
	admin %s
	persist_config off
	auto_https disable_redirects
	skip_install_trust
	default_bind 127.0.0.1
	storage file_system %q
	log default {
		output file %q
		format json
	}
%s`, cmp.Or(w.admin, "off"), w.storage(), d.logFile, options))
	if err != nil {
		t.Fatal(err)
	}
	if err := caddy.Load(config, true); err != nil {
		t.Fatal(err)
	}
	return d
}

// withoutComments leaves out lines that are comments.
func withoutComments(text string) string {
	return regexp.MustCompile(`(?m)^\s*#.*\n`).ReplaceAllString(text, "")
}

// access returns the next line of the access log.
func (d *documented) access() (line map[string]any) {
	d.Helper()
	testlab.Eventually(d, "the next line of the access log", func() bool {
		data, err := os.ReadFile(d.logFile)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			d.Fatal(err)
		}
		n := 0
		for text := range strings.Lines(string(data)) {
			if !strings.HasSuffix(text, "\n") {
				return false // it is being written
			}
			var fields map[string]any
			if err := json.Unmarshal([]byte(text), &fields); err != nil {
				d.Fatalf("%s: %v", text, err)
			}
			if name, _ := fields["logger"].(string); !strings.HasPrefix(name, "http.log.access") {
				continue
			}
			if n++; n > d.logged {
				d.logged, line = n, fields
				return true
			}
		}
		return false
	})
	return line
}

// logs checks fields of the next line of the access log: name, value, name, value …
func (d *documented) logs(pairs ...any) {
	d.Helper()
	line := d.access()
	want := make(map[string]any)
	for pair := range slices.Chunk(pairs, 2) {
		want[pair[0].(string)] = pair[1]
	}
	got := maps.Clone(line)
	maps.DeleteFunc(got, func(name string, _ any) bool { _, ok := want[name]; return !ok })
	if !maps.Equal(got, want) {
		d.Errorf("got %v in the access log, want %v", line, want)
	}
}

// send sends a request that has to be answered, by a gateway or an error, with a status.
func (d *documented) send(status int, method, path, body string, change ...func(*http.Request)) response {
	d.Helper()
	res, err := d.try(method, path, "", strings.NewReader(body), change...)
	if err != nil {
		d.Fatal(err)
	}
	if res.StatusCode != status {
		d.Errorf("%s %s: got %v, want status %d", method, path, res, status)
	}
	return res
}

// is checks one thing that the documentation promises.
func is[V comparable](t testing.TB, what string, got, want V) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// nameserver is the block of a resolver that asks the one of the test.
func (w *world) nameserver() string { return w.dns.Addr + " {\nhosts off\nfamily ipv4" }

// trust makes a site call the backends of the test.
func (w *world) trust() string { return fmt.Sprintf("allow_ips 127.0.0.0/8\n%s", w.trustCA()) }

func (w *world) trustCA() string { return fmt.Sprintf("tls_trust_pool file %q", w.ca.File) }

// from makes a client's requests come from another address of loopback.
func (w *world) from(t testing.TB, addr string) {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
	rt := &http.Transport{DialContext: dialer.DialContext}
	t.Cleanup(rt.CloseIdleConnections)
	w.client = &http.Client{Transport: rt}
}
