package caddytarget

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"caddytarget/internal/admin"
	"caddytarget/internal/failure"
	"caddytarget/internal/guard"
)

// docs/reference.md is held against the code.

const reference = "docs/reference.md"

// sectionOf returns what stands below a heading of a text, up to the next one.
func sectionOf(t *testing.T, text, heading string) string {
	t.Helper()
	_, section, found := strings.Cut(text, "\n"+heading+"\n")
	if !found {
		t.Fatalf("there is no %s", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	return section
}

// words returns what groups of a pattern match in a text, sorted, each once.
func words(text, pattern string) (list []string) {
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		list = append(list, match[1:]...)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// sameWords checks that the documentation has the words that the code has.
func sameWords(t *testing.T, what string, documented, inCode []string) {
	t.Helper()
	slices.Sort(inCode)
	if !slices.Equal(documented, slices.Compact(inCode)) {
		t.Errorf("%s: got %v in %s, want %v", what, documented, reference, inCode)
	}
}

// TestReferenceGrammar checks that the grammars stand there as in the doc comments, and
// have all subdirectives.
func TestReferenceGrammar(t *testing.T) {
	text := readFile(t, reference)
	file, err := parser.ParseFile(token.NewFileSet(), "caddyfile.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	grammars := make(map[string]string) // by their first line
	for _, decl := range file.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		_, syntax, found := strings.Cut(fn.Doc.Text(), "Syntax:\n\n")
		if !found {
			continue
		}
		var lines []string
		for line := range strings.Lines(syntax) {
			line, indented := strings.CutPrefix(line, "\t")
			if !indented {
				break
			}
			lines = append(lines, line)
		}
		grammar := strings.Join(lines, "")
		if !strings.Contains(text, "```\n"+grammar+"```\n") {
			t.Errorf("%s does not have the syntax of %s:\n%s", reference, fn.Name.Name, grammar)
		}
		grammars[strings.Fields(grammar)[0]] = grammar
	}
	for name, opts := range map[string]options{
		"target":    new(Handler).options(),
		"dynamic":   new(Upstreams).options(),
		"transport": new(Transport).options(),
		"resolver":  new(Resolver).options(),
	} {
		if name == "target" { // the grammar that was found last is one of both
			_, grammar, _ := strings.Cut(text, "\ntarget [<matcher>] <url> {\n")
			grammars[name], _, _ = strings.Cut("\n"+grammar, "\n}\n")
		}
		sameWords(t, "subdirectives of "+name, words(grammars[name], `(?m)^    (\w+)`), slices.Collect(maps.Keys(opts)))
	}
	_, list, _ := strings.Cut(text, "that work here are ")
	list, _, _ = strings.Cut(list, ".\n")
	refused := words(grammars["transport"], `(network_proxy|forward_proxy_url|resolvers|dial_fallback_delay|tls_except_ports)`)
	taken := slices.DeleteFunc(slices.Clone(httpOptions), func(option string) bool { return slices.Contains(refused, option) })
	sameWords(t, "options of transport http", words(list, "`(\\w+)`"), taken)
}

// jsonNames returns the names of the members of a type, except those of Caddy's types that
// it embeds.
func jsonNames(of reflect.Type) (names []string) {
	for field := range of.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		switch {
		case name != "" && name != "-":
			names = append(names, name)
		case field.Anonymous && field.Type.Kind() == reflect.Struct && field.Type.PkgPath() == of.PkgPath():
			names = append(names, jsonNames(field.Type)...)
		}
	}
	return names
}

// TestReferenceJSON checks that the JSON there can be read, and has all members.
func TestReferenceJSON(t *testing.T) {
	text := readFile(t, reference)
	var blocks []map[string]json.RawMessage
	for _, block := range regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(text, -1) {
		var members map[string]json.RawMessage
		if err := json.Unmarshal([]byte(block[1]), &members); err != nil {
			t.Fatalf("%v\n%s", err, block[1])
		}
		blocks = append(blocks, members)
	}
	check := func(what string, members map[string]json.RawMessage, value any, elsewhere ...string) {
		t.Helper()
		names := slices.DeleteFunc(jsonNames(reflect.TypeOf(value).Elem()), func(name string) bool { return slices.Contains(elsewhere, name) })
		sameWords(t, "JSON of "+what, slices.Sorted(maps.Keys(members)), names)
		data, err := json.Marshal(members)
		if err != nil {
			t.Fatal(err)
		}
		if err := caddy.StrictUnmarshalJSON(data, value); err != nil {
			t.Errorf("JSON of %s: %v", what, err)
		}
	}
	nested := func(members map[string]json.RawMessage, name string) (inner map[string]json.RawMessage) {
		t.Helper()
		if err := json.Unmarshal(members[name], &inner); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return inner
	}
	found := 0
	for _, members := range blocks {
		switch {
		case members["handler"] != nil:
			delete(members, "handler")
			check("follow_redirects", nested(members, "follow_redirects"), new(Redirects))
			check("the handler", members, new(Handler), "proxy")
		case members["source"] != nil:
			delete(members, "source")
			check("the source", members, new(Upstreams), "schemes") // see Validate
		case members["protocol"] != nil:
			delete(members, "protocol")
			check("the transport", members, new(Transport))
		case members["apps"] != nil:
			app := nested(nested(members, "apps"), "target")
			check("the resolver", nested(app, "resolver"), new(Resolver))
			check("the app", app, new(App))
		default:
			continue
		}
		found++
	}
	if found != 4 {
		t.Errorf("got the JSON of %d modules, want 4", found)
	}
	if !strings.Contains(text, "- **proxy** (JSON only") {
		t.Error("the member proxy is not described")
	}
}

// TestReferenceWords checks the closed sets of words: placeholders, phases, tokens, rules,
// statuses and modules.
func TestReferenceWords(t *testing.T) {
	text := readFile(t, reference)

	_, source, _ := strings.Cut(readFile(t, "internal/exchange/state.go"), `CutPrefix(key, "http.target.")`)
	placeholders := words(source, `(?m)^\tcase "(\w+)":$`)
	sameWords(t, "placeholders", words(sectionOf(t, text, "## Placeholders"), "(?m)^\\| `\\{http\\.target\\.(\\w+)\\}`"), placeholders)
	sameWords(t, "placeholders of the doc comment", words(readFile(t, "handler.go"), "(?m)^// `\\{http\\.target\\.(\\w+)\\}`"), placeholders)

	source = readFile(t, "internal/failure/failure.go")
	tokens := sectionOf(t, text, "## Tokens and phases")
	phases, tokens, _ := strings.Cut(tokens, "- Tokens: ")
	sameWords(t, "phases", words(phases, "`(\\w+)`"), words(source, `Phase += "(\w+)"`))
	sameWords(t, "tokens", words(tokens, "`(\\w+)`"), words(source, `Token += "(\w+)"`))

	rules := append(guard.RefusalRules(), failure.RuleNoTarget, failure.RuleMalformed, failure.RuleLoop, failure.RuleMaxRequests, failure.RuleMaxLookups, failure.RuleNewNames)
	_, listed, _ := strings.Cut(sectionOf(t, text, "## Rules"), "The rules are")
	sameWords(t, "rules", words(strings.ReplaceAll(listed, "`enforce`", ""), "`(\\w+)`"), rules)

	_, source, _ = strings.Cut(source, "func StatusOf(")
	source, _, _ = strings.Cut(source, "\n}\n")
	codes := map[string]int{
		"StatusBadRequest": 400, "StatusForbidden": 403, "StatusClientGone": 499, "StatusBadGateway": 502,
		"StatusServiceUnavailable": 503, "StatusGatewayTimeout": 504, "StatusLoopDetected": 508,
	}
	var statuses []string
	for _, name := range words(source, `return (?:http\.)?(Status\w+)`) {
		statuses = append(statuses, strconv.Itoa(codes[name]))
	}
	sameWords(t, "statuses", words(sectionOf(t, text, "## Statuses"), `(?m)^\| (\d+) \|`), statuses)

	modules := words(sectionOf(t, text, "## Names of modules"), "(?m)\\| `([\\w.]+)` \\|$")
	var registered []string
	for _, id := range caddy.Modules() {
		if id == "target" || strings.HasSuffix(id, ".target") {
			registered = append(registered, id)
		}
	}
	sameWords(t, "modules", modules, registered)
}

// describedBy returns the metrics of a collector, each with its labels.
func describedBy(c prometheus.Collector) (metrics []string) {
	descs := make(chan *prometheus.Desc, 100)
	c.Describe(descs)
	close(descs)
	described := regexp.MustCompile(`fqName: "(\w+)".*variableLabels: \{([^}]*)\}`)
	for desc := range descs {
		parts := described.FindStringSubmatch(desc.String())
		metrics = append(metrics, parts[1]+" "+strings.ReplaceAll(parts[2], ",", ", "))
	}
	return metrics
}

// TestReferenceMetrics checks that all metrics are there, with their labels, and no others.
func TestReferenceMetrics(t *testing.T) {
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(caddy_target_\\w+)` \\| ([^|]*)\\|").FindAllStringSubmatch(readFile(t, reference), -1) {
		documented = append(documented, row[1]+" "+strings.TrimSpace(strings.ReplaceAll(row[2], "`", "")))
	}
	slices.Sort(documented)
	shared, registry := newShared(), prometheus.NewRegistry()
	if err := errors.Join(shared.metrics.Register(registry), shared.metrics.RegisterTargets(registry)); err != nil {
		t.Fatal(err)
	}
	sameWords(t, "metrics", documented, describedBy(registry))
}

// TestReferenceOperating checks the endpoints and the commands.
func TestReferenceOperating(t *testing.T) {
	text := readFile(t, reference)
	var paths []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(GET|POST) /target/(\\S*)` \\| ([^|]*)\\|").FindAllStringSubmatch(text, -1) {
		method, path, params := row[1], row[2], row[3]
		endpoint := newAdminAPI().Endpoint(path)
		if endpoint == nil {
			t.Errorf("there is no endpoint /target/%s", path)
			continue
		}
		if method != endpoint.Method {
			t.Errorf("/target/%s: got the method %s in %s, want %s", path, method, reference, endpoint.Method)
		}
		if method == "GET" {
			sameWords(t, "parameters of /target/"+path, words(params, "`(\\w+)`"), slices.Clone(endpoint.Params))
		} else {
			sameWords(t, "members of /target/"+path, words(params, "`(\\w+)`"), jsonNames(reflect.TypeFor[admin.PurgeRequest]()))
		}
		if path != "names/NAME" {
			paths = append(paths, path)
		}
	}
	_, source, _ := strings.Cut(readFile(t, "internal/admin/admin.go"), ") Endpoint(")
	source, _, _ = strings.Cut(source, "\n}\n")
	slices.Sort(paths)
	sameWords(t, "endpoints", paths, words(source, `(?m)^\tcase "(\w*)":$`))

	root := new(cobra.Command)
	setUpCommand(root)
	var documented, inCode []string
	for _, row := range regexp.MustCompile("(?m)^\\| `caddy target (\\w+)[^`]*` \\| ([^|]*)\\|").FindAllStringSubmatch(text, -1) {
		documented = append(documented, fmt.Sprint(row[1], words(row[2], "`(-[\\w-]+)`")))
	}
	slices.Sort(documented)
	flagsOf := func(set *pflag.FlagSet) (flags []string) {
		set.VisitAll(func(f *pflag.Flag) {
			flags = append(flags, "--"+f.Name)
			if f.Shorthand != "" {
				flags = append(flags, "-"+f.Shorthand)
			}
		})
		slices.Sort(flags)
		return flags
	}
	for _, cmd := range root.Commands() {
		inCode = append(inCode, fmt.Sprint(cmd.Name(), flagsOf(cmd.LocalNonPersistentFlags())))
	}
	sameWords(t, "commands", documented, inCode)
	_, common, _ := strings.Cut(text, "They ask the admin API of the running server. ")
	common, _, _ = strings.Cut(common, ". Examples")
	sameWords(t, "options of all commands", words(common, "`(-[\\w-]+)[^`]*`"), flagsOf(root.PersistentFlags()))
}
