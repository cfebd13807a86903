package caddytarget

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"caddytarget/internal/testlab"
	"caddytarget/internal/trace"
)

// docsWorld is the gateway of the examples of docs/operating.md.
func docsWorld(t *testing.T) (w *world, unify *strings.Replacer) {
	w = newAdminWorld(t)
	corp := testlab.NewNameserver(t)
	w.dns.Set("shop.example", testlab.Reply{Addrs: []string{"127.0.0.2"}, TTL: 3000})
	w.dns.Set("broken.example", testlab.Reply{Rcode: dns.RcodeServerFailure})
	corp.Set("db.corp.example", testlab.Reply{Addrs: []string{"192.0.2.20"}, TTL: 3000})
	w.resolver = "tries 1\nrefresh off\nzone corp.example " + corp.Addr
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.run("metrics /metrics\n" + w.proxy("allow_ips 192.0.2.0/24", "fail_duration 1h"))
	r := usedResolvers()[0]
	for _, name := range []string{"shop.example", "none.example", "broken.example", "db.corp.example"} {
		w.lookup(r, []string{name})
	}
	w.mustGet("/", "http://shop.example:"+b.Port)
	w.get("/", "http://127.0.0.3:"+b.Port) // where nothing listens
	return w, strings.NewReplacer(
		w.dns.Addr, "10.0.0.53:53", corp.Addr, "10.1.0.53:53", r.ID(), "6f1e2a9c", acquiredShared(w).pools.All()[0].Name(), "0d5b7c31",
		"127.0.0.2:"+b.Port, "192.0.2.10:80", "127.0.0.3:"+b.Port, "192.0.2.11:80", "127.0.0.2", "192.0.2.10",
		"127.0.0.3", "192.0.2.11",
		"127.0.0.1:"+w.port, "127.0.0.1:8080",
	)
}

// changing are the members of answers that are not the same each time.
var changing = []string{
	"version", "caddy", "go", "ttl", "stale_for", "used", "error_age", "retry", "next_refresh", "seconds", "rtt", "changed",
	"oldest", "newest", "unused", "last", "left", "since",
}

// sameJSON returns JSON with the values of changing members left out.
func sameJSON(t testing.TB, text string) string {
	t.Helper()
	var value any
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Errorf("reading %s: %v", text, err)
		return text
	}
	var unify func(any)
	unify = func(value any) {
		switch value := value.(type) {
		case map[string]any:
			for key, member := range value {
				if slices.Contains(changing, key) {
					value[key] = "*"
				}
				unify(member)
			}
		case []any:
			for _, element := range value {
				unify(element)
			}
		}
	}
	unify(value)
	unified, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(unified)
}

// sameTable returns the lines of a table, sorted, without times and widths of columns.
// Numbers with four decimals are seconds; a time of the day has three. Whether the time is over
// after which a name is asked for again depends on the machine, too.
func sameTable(text string) string {
	text = regexp.MustCompile(`not asked for again for \S+|asked for again with the next request`).ReplaceAllString(text, "*")
	text = regexp.MustCompile(`-?\b(([0-9.]+(ms|s|m|h))+|[0-9]+\.[0-9]{4}|[0-9:]{8}\.[0-9]{3})\b`).ReplaceAllString(text, "*")
	text = regexp.MustCompile(` +`).ReplaceAllString(text, " ")
	text = strings.ReplaceAll(text, " \n", "\n")
	return strings.Join(slices.Sorted(strings.Lines(strings.TrimRight(text, " \n")+"\n")), "")
}

// example is a command in the documentation, and what it prints there.
type example struct{ command, want string }

// examplesIn returns the examples of a page, without what the lines of a list are indented by.
func examplesIn(text string) (examples []example) {
	for _, block := range regexp.MustCompile("(?ms)^( *)```console\n(.*?)^ *```$").FindAllStringSubmatch(text, -1) {
		lines := strings.ReplaceAll("\n"+block[2], "\n"+block[1], "\n")
		for text := range strings.SplitSeq(strings.TrimPrefix(lines, "\n$ "), "\n$ ") {
			command, want, _ := strings.Cut(text, "\n")
			examples = append(examples, example{command, want})
		}
	}
	return examples
}

var curlAdmin = regexp.MustCompile(`^curl -s (?:-d '(.*)' )?'localhost:2019(/.*)' \| jq$`)

// runExample runs a command of the documentation, and returns what it prints and the
// function that leaves out what is not the same each time.
func (w *world) runExample(command string) (got string, same func(string) string) {
	w.Helper()
	if args, ok := strings.CutPrefix(command, "caddy target "); ok {
		_, stdout, stderr := caddyTarget(w, append(strings.Fields(args), "--address", w.admin)...)
		if strings.HasPrefix(stderr, `{"level":"error"`) {
			stderr = "" // Caddy's log says what the exit status does
		}
		return stdout + stderr, sameTable
	}
	parts := curlAdmin.FindStringSubmatch(command)
	if parts == nil {
		w.Fatalf("unknown command %s", command)
	}
	method := http.MethodGet
	if parts[1] != "" {
		method = http.MethodPost
	}
	_, body := w.askAdmin(method, parts[2], parts[1])
	return body, func(text string) string { return sameJSON(w, text) }
}

// TestOperatingDocs checks that the examples of docs/operating.md show what the commands
// and the endpoints answer.
func TestOperatingDocs(t *testing.T) {
	text, err := os.ReadFile("docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	w, unify := docsWorld(t)
	examples := examplesIn(string(text))
	if len(examples) < 9 {
		t.Errorf("got %d examples in docs/operating.md, want one of each command and endpoint", len(examples))
	}
	// those that change something are the last ones; explain looks names up
	changes := func(e example) int { return 2*strings.Count(e.command, "purge") + strings.Count(e.command, "explain") }
	slices.SortStableFunc(examples, func(a, b example) int { return changes(a) - changes(b) })
	for _, e := range examples {
		got, same := w.runExample(e.command)
		got = unify.Replace(got)
		if same(got) != same(e.want) {
			t.Errorf("%s: got\n%s\nwant, as in docs/operating.md,\n%s", e.command, got, e.want)
		}
	}
}

// TestOperatingDocsMetrics checks that the metrics have series, and that docs/reference.md
// has all values of rcode. TestReferenceMetrics checks names and labels.
func TestOperatingDocsMetrics(t *testing.T) {
	text := readFile(t, reference)
	w, _ := docsWorld(t)
	registry := prometheus.NewRegistry()
	if err := newShared().metrics.Register(registry); err != nil {
		t.Fatal(err)
	}
	for _, metric := range describedBy(registry) {
		name, _, _ := strings.Cut(strings.TrimPrefix(metric, "caddy_target_"), " ")
		if len(w.dnsSeries(name)) == 0 && name != "left_out_total" { // which begin with the first address
			t.Errorf("got no series of %s, want some", name)
		}
	}
	rcodes := make(map[string]bool)
	for series := range w.dnsSeries("dns_queries_total") {
		rcodes[regexp.MustCompile(`rcode="(\w+)"`).FindStringSubmatch(series)[1]] = true
	}
	if len(rcodes) < 11 {
		t.Errorf("got the values %v of rcode, want more", rcodes)
	}
	for word := range rcodes {
		if !strings.Contains(text, fmt.Sprintf("`%s`", word)) {
			t.Errorf("docs/reference.md has no `%s`, want all values of rcode", word)
		}
	}
}

// TestOperatingDocsTrace checks that the examples of a live trace in docs/operating.md are
// such as the endpoint and the command print, and that all members are described.
func TestOperatingDocsTrace(t *testing.T) {
	text, err := os.ReadFile("docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, data := range regexp.MustCompile(`(?m)^data: (\{"time".*)$`).FindAllStringSubmatch(string(text), -1) {
		var e trace.Event
		d := json.NewDecoder(strings.NewReader(data[1]))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil {
			t.Fatalf("%s: %v", data[1], err)
		}
		if again, err := json.Marshal(e); err != nil || sameJSON(t, string(again)) != sameJSON(t, data[1]) {
			t.Errorf("got %s, want %s as in docs/operating.md", again, data[1])
		}
		_, line, _ := strings.Cut(e.Line(), " ")
		lines = append(lines, line)
	}
	if len(lines) != 2 {
		t.Fatalf("got %d requests in docs/operating.md, want 2", len(lines))
	}
	for _, line := range lines {
		if !strings.Contains(string(text), " "+line+"\n") {
			t.Errorf("docs/operating.md lacks the line %s", line)
		}
	}
	_, section, _ := strings.Cut(string(text), "### GET /target/trace")
	section, _, _ = strings.Cut(section, "\n### ")
	for _, of := range []reflect.Type{reflect.TypeFor[trace.Event](), reflect.TypeFor[trace.Attempt]()} {
		for field := range of.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if name != "" && name != "time" && name != "method" && name != "address" && !strings.Contains(section, "`"+name+"`") {
				t.Errorf("docs/operating.md does not describe the member %s", name)
			}
		}
	}
}
