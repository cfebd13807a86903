package caddytarget

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"caddytarget/internal/testlab"
)

// --- The part of PromQL that the dashboard and the rules use ---

// selector selects series by name and labels.
type selector struct {
	name     string
	matchers []matcher
	at       int // the index of its name in the tokens
}

// matcher is a condition on a label. values are the alternatives of a regular expression.
type matcher struct {
	label  string
	values []string
}

// grouping is a list of labels, as in "by (zone)", and the tokens between which it has to
// hold for all selectors.
type grouping struct {
	labels   []string
	from, to int
}

// promExpr is what an expression names.
type promExpr struct {
	selectors []selector
	groupings []grouping
}

var promTokens = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|\[[^\]]*\]|[a-zA-Z_][a-zA-Z0-9_]*|[0-9.]+|=~|!~|!=|>=|<=|==|\S`)

// parseProm finds selectors and groupings in an expression of PromQL. It does not check
// the syntax otherwise: promtool does.
func parseProm(text string) (*promExpr, error) {
	tokens := promTokens.FindAllString(text, -1)
	at := func(i int) string {
		if i < len(tokens) {
			return tokens[i]
		}
		return ""
	}
	e := new(promExpr)
	for i := 0; i < len(tokens); i++ {
		switch token := tokens[i]; {
		case token == "by", token == "on", token == "ignoring", token == "without", token == "group_left", token == "group_right":
			end := i + slices.Index(tokens[i:], ")")
			if at(i+1) != "(" || end < i {
				return nil, fmt.Errorf("%s without a list of labels", token)
			}
			g := grouping{to: len(tokens)}
			for _, label := range tokens[i+2 : end] {
				if label != "," {
					g.labels = append(g.labels, label)
				}
			}
			if i = end; token == "by" { // it is of what follows in parentheses
				if at(end+1) != "(" {
					return nil, fmt.Errorf("by without an expression after it")
				}
				g.from, g.to = end+1, closing(tokens, end+1)
			}
			e.groupings = append(e.groupings, g)
		case token == "and", token == "or", token == "unless", token == "bool", token == "offset":
		case !regexp.MustCompile(`^[a-zA-Z_]`).MatchString(token), slices.Contains([]string{"(", "by", "without"}, at(i+1)): // a function, not a series
		default:
			s := selector{name: token, at: i}
			if at(i+1) == "{" {
				for i++; at(i) != "}"; {
					if i+3 >= len(tokens) || !strings.HasPrefix(tokens[i+3], `"`) {
						return nil, fmt.Errorf("%s: a matcher is not complete", s.name)
					}
					m := matcher{label: tokens[i+1], values: []string{strings.Trim(tokens[i+3], `"`)}}
					if strings.HasSuffix(tokens[i+2], "~") {
						m.values = strings.Split(m.values[0], "|")
					}
					s.matchers = append(s.matchers, m)
					i += 4 // at the comma or the brace
				}
			}
			e.selectors = append(e.selectors, s)
		}
	}
	if len(e.selectors) == 0 {
		return nil, fmt.Errorf("no series")
	}
	return e, nil
}

// closing returns the index of the parenthesis that closes the one at an index.
func closing(tokens []string, open int) int {
	depth := 0
	for i := open; i < len(tokens); i++ {
		switch tokens[i] {
		case "(":
			depth++
		case ")":
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return len(tokens)
}

// --- what is scraped ---

// scrape is the values of the labels of each series, by name and label.
type scrape map[string]map[string]map[string]bool

var (
	seriesLine  = regexp.MustCompile(`^(\w+)(?:\{(.*)\})? \S+$`)
	seriesLabel = regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)
)

// scrapeLabels are the labels that Prometheus adds.
var scrapeLabels = []string{"job", "instance"}

func parseScrape(t *testing.T, text string) scrape {
	s := scrape{"up": {}} // which Prometheus adds
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		parts := seriesLine.FindStringSubmatch(strings.TrimSpace(line))
		if parts == nil {
			t.Fatalf("got the line %q of /metrics, want a series", line)
		}
		if s[parts[1]] == nil {
			s[parts[1]] = make(map[string]map[string]bool)
		}
		for _, label := range seriesLabel.FindAllStringSubmatch(parts[2], -1) {
			if s[parts[1]][label[1]] == nil {
				s[parts[1]][label[1]] = make(map[string]bool)
			}
			s[parts[1]][label[1]][label[2]] = true
		}
	}
	return s
}

// check returns what an expression names that was not scraped.
func (s scrape) check(text string) (missing []string) {
	e, err := parseProm(text)
	if err != nil {
		return []string{err.Error()}
	}
	for _, sel := range e.selectors {
		labels, ok := s[sel.name]
		if !ok {
			missing = append(missing, "series "+sel.name)
			continue
		}
		for _, m := range sel.matchers {
			if slices.Contains(scrapeLabels, m.label) {
				continue
			}
			for _, value := range m.values {
				if !labels[m.label][value] {
					missing = append(missing, fmt.Sprintf("%s{%s=%q}", sel.name, m.label, value))
				}
			}
		}
		for _, g := range e.groupings {
			for _, label := range g.labels {
				if g.from <= sel.at && sel.at < g.to && labels[label] == nil && !slices.Contains(scrapeLabels, label) {
					missing = append(missing, fmt.Sprintf("label %s of %s", label, sel.name))
				}
			}
		}
	}
	return missing
}

// --- the files ---

// query is an expression and what shows its result: a legend or annotations.
type query struct{ where, expr, shows string }

type dashboard struct {
	Panels []struct {
		Title, Type, Description string
		Targets                  []struct{ Expr, LegendFormat string }
	}
	Templating struct {
		List []struct{ Name, Type, Query string }
	}
}

type alertRules struct {
	Groups []struct {
		Rules []alertRule
	}
}

type alertRule struct {
	Alert, Expr, For    string
	Labels, Annotations map[string]string
}

func readDashboard(t *testing.T) (d dashboard, queries []query) {
	text, err := os.ReadFile("examples/monitoring/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			queries = append(queries, query{p.Title, target.Expr, target.LegendFormat})
		}
	}
	return d, queries
}

func readAlerts(t *testing.T) (rules []alertRule, queries []query) {
	text, err := os.ReadFile("examples/monitoring/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	var all alertRules
	if err := yaml.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	for _, group := range all.Groups {
		for _, rule := range group.Rules {
			rules = append(rules, rule)
			queries = append(queries, query{rule.Alert, rule.Expr, strings.Join(slices.Collect(maps.Values(rule.Annotations)), "\n")})
		}
	}
	return rules, queries
}

// shown are the labels in legends and annotations.
var shown = regexp.MustCompile(`\{\{ *(?:\$labels\.)?(\w+) *\}\}`)

// TestMonitoring checks that all series, labels and values of labels in the dashboard and
// in the alert rules are in what Caddy's /metrics has, after requests that failed.
func TestMonitoring(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.dns.Has("a.example", "127.0.0.2")
	w.dns.Has("inside.example", "127.0.0.2", "10.0.0.1")
	w.targetOptions = "metrics_targets"
	w.run("metrics /metrics\n" + w.proxy())
	w.mustGet("/", "http://a.example:"+b.Port)
	w.mustGet("/", "http://inside.example:"+b.Port)
	w.get("/", "http://none.example")
	w.get("/", "http://a.example:"+testlab.FreePort(t))
	got := parseScrape(t, w.mustGet("/metrics", "").body)

	d, queries := readDashboard(t)
	_, ofRules := readAlerts(t)
	if len(queries) < 30 || len(ofRules) < 10 {
		t.Errorf("got %d queries of the dashboard and %d rules, want more", len(queries), len(ofRules))
	}
	for _, q := range append(queries, ofRules...) {
		for _, missing := range got.check(strings.ReplaceAll(q.expr, "$__rate_interval", "1m")) {
			t.Errorf("%s: %s is not in /metrics:\n%s", q.where, missing, q.expr)
		}
		e, err := parseProm(q.expr)
		if err != nil {
			continue // is told above
		}
		for _, label := range shown.FindAllStringSubmatch(q.shows, -1) {
			byAny := slices.ContainsFunc(e.groupings, func(g grouping) bool { return slices.Contains(g.labels, label[1]) })
			if !byAny && (len(e.groupings) > 0 || !slices.Contains(scrapeLabels, label[1])) {
				t.Errorf("%s shows the label %s, which the result of %s does not have", q.where, label[1], q.expr)
			}
		}
	}
	for _, v := range d.Templating.List {
		if v.Type != "query" {
			continue
		}
		inner, ok := strings.CutPrefix(v.Query, "label_values(")
		at := strings.LastIndex(inner, ", ")
		if !ok || at < 0 {
			t.Errorf("got the query %s of the variable %s, want label_values", v.Query, v.Name)
			continue
		}
		if missing := got.check(inner[:at]); len(missing) > 0 {
			t.Errorf("the variable %s: %v is not in /metrics", v.Name, missing)
		}
	}

	// what the check itself has to find
	for expr, want := range map[string]string{
		`sum(rate(caddy_target_request_total[5m]))`:                               "series caddy_target_request_total",
		`sum by (zones) (caddy_target_nameserver_down)`:                           "label zones of caddy_target_nameserver_down",
		`caddy_target_lookups_total{result="expired"}`:                            `caddy_target_lookups_total{result="expired"}`,
		`caddy_target_lookups_total{result=~"hit|expired"}`:                       `caddy_target_lookups_total{result="expired"}`,
		`caddy_target_failures_total{error!~"client_left"}`:                       `caddy_target_failures_total{error="client_left"}`,
		`sum(caddy_target_dials) / on (zone) sum(caddy_target_evictions_total)`:   "label zone of caddy_target_dials",
		`histogram_quantile(.5, sum by (le) (rate(caddy_target_dial_secs[1m])))`:  "series caddy_target_dial_secs",
		`topk(3, caddy_target_top_requests_total{name!="(other)", job=~"$job"})`:  `caddy_target_top_requests_total{name="(other)"}`,
		`caddy_target_dials > 1 and on (job) sum by (zone) (caddy_target_dials)`:  "label zone of caddy_target_dials",
		`max by (nameserver) (caddy_target_cache_names) or caddy_target_dials`:    "label nameserver of caddy_target_cache_names",
		`caddy_target_cache_names{state="fresh"} + caddy_target_cache_name{a="b"`: "caddy_target_cache_name: a matcher is not complete",
	} {
		if missing := got.check(expr); !slices.Equal(missing, []string{want}) {
			t.Errorf("got %q as missing for %s, want %q", missing, expr, want)
		}
	}
}

// TestMonitoringCoversMetrics checks that the dashboard shows each metric of the gateway.
func TestMonitoringCoversMetrics(t *testing.T) {
	_, queries := readDashboard(t)
	var all strings.Builder
	for _, q := range queries {
		all.WriteString(q.expr + "\n")
	}
	for _, file := range []string{"README.md", "docs/operating.md"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile("(?m)^\\| `(caddy_target_\\w+)`").FindAllStringSubmatch(string(text), -1) {
			if !regexp.MustCompile(name[1] + `(_bucket)?\{`).MatchString(all.String()) {
				t.Errorf("the dashboard does not show %s", name[1])
			}
		}
	}
}

// TestAlertsDocs checks that docs/operating.md has all alerts with their delays, that the
// places that they name are there, and that each is tested.
func TestAlertsDocs(t *testing.T) {
	read := func(file string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	rules, _ := readAlerts(t)
	var got []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(Caddytarget\\w+)` \\| (\\w+) \\| (\\w+) \\|").FindAllStringSubmatch(read("docs/operating.md"), -1) {
		got = append(got, strings.Join(row[1:], " "))
	}
	var want []string
	tests := read("examples/monitoring/alerts_test.yml")
	for _, rule := range rules {
		want = append(want, fmt.Sprintf("%s %s %s", rule.Alert, rule.Labels["severity"], rule.For))
		for _, name := range []string{"  - name: " + rule.Alert + "\n", "  - name: not " + rule.Alert + "\n"} {
			if !strings.Contains(tests, name) {
				t.Errorf("alerts_test.yml has no test%q", strings.TrimPrefix(name, "  - name:"))
			}
		}
		if rule.Annotations["summary"] == "" {
			t.Errorf("%s has no summary", rule.Alert)
		}
		file, anchor, _ := strings.Cut(rule.Annotations["runbook"], "#")
		if _, err := fs.Stat(os.DirFS("docs"), file); err != nil {
			t.Errorf("%s: %v", rule.Alert, err)
			continue
		}
		anchors := []string{anchor}
		if anchor == "{{ $labels.phase }}" {
			anchors = []string{"request", "policy", "dns", "connect", "tls", "send", "response"}
		}
		for _, anchor := range anchors {
			heading := regexp.MustCompile("(?mi)^##+ `?" + strings.ReplaceAll(anchor, "-", " ") + "`?$")
			if anchor != "" && !heading.MatchString(read(filepath.Join("docs", file))) {
				t.Errorf("%s: docs/%s has no heading %s", rule.Alert, file, anchor)
			}
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got the alerts\n%s\nin docs/operating.md, want\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
