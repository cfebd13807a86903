package caddytarget

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/build"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

var updateGoldens = flag.Bool("update-goldens", false, "rewrite the JSON of testdata/adapt")

// adaptText returns the JSON of a Caddyfile.
func adaptText(text string) ([]byte, []caddyconfig.Warning, error) {
	return caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Testfile"})
}

// validateJSON does what `caddy validate` does, with a storage of its own.
func validateJSON(t *testing.T, config []byte) error {
	t.Helper()
	var c caddy.Config
	if err := caddy.StrictUnmarshalJSON(config, &c); err != nil {
		return err
	}
	c.StorageRaw = caddyconfig.JSON(map[string]string{"module": "file_system", "root": t.TempDir()}, nil)
	c.Logging = &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": {BaseLog: caddy.BaseLog{
		WriterRaw: json.RawMessage(`{"output": "discard"}`),
	}}}}
	return caddy.Validate(&c)
}

const goldens = "testdata/adapt/*.caddyfiletest"

// readGolden returns the two parts of a golden file: Caddyfile and JSON.
func readGolden(t *testing.T, file string) (text, want string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text, want, ok := strings.Cut(strings.ReplaceAll(string(data), "\r\n", "\n"), "----------\n")
	if !ok {
		t.Fatalf("%s has no line of dashes", file)
	}
	return text, strings.TrimSpace(want)
}

func eachGolden(t *testing.T, test func(t *testing.T, file, text, want string)) {
	t.Helper()
	files, err := filepath.Glob(goldens)
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddyfiletest"), func(t *testing.T) {
			text, want := readGolden(t, file)
			test(t, file, text, want)
		})
	}
}

func TestAdaptGoldens(t *testing.T) {
	eachGolden(t, func(t *testing.T, file, text, want string) {
		config, warnings, err := adaptText(text)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(file, "quoted") { // whose style is the point
			for _, w := range warnings {
				t.Errorf("warning: %s", w)
			}
		}
		var got bytes.Buffer
		if err := json.Indent(&got, config, "", "\t"); err != nil {
			t.Fatal(err)
		}
		if *updateGoldens {
			if err := os.WriteFile(file, []byte(text+"----------\n"+got.String()+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		} else if got.String() != want {
			t.Errorf("got:\n%s\nwant:\n%s", got.String(), want)
		}
		if strings.Contains(file, "automate") {
			return // provisioning it obtains a certificate
		}
		if err := validateJSON(t, config); err != nil {
			t.Errorf("not valid: %v", err)
		}
	})
}

// TestAdaptGoldensCoverOptions has every subdirective in a golden of each place
// where it may stand.
func TestAdaptGoldensCoverOptions(t *testing.T) {
	names := func(opts options) []string { return slices.Collect(maps.Keys(opts)) }
	var passedOn []string
	for _, name := range httpOptions {
		switch name {
		case "forward_proxy_url", "network_proxy", "resolvers", "dial_fallback_delay", "tls_except_ports": // refused
		default:
			passedOn = append(passedOn, name)
		}
	}
	source := names(new(Upstreams).options())
	ofTarget := func(name string) bool { return name == "resolver" || slices.Contains(guardOptions, name) }
	for _, test := range []struct {
		files string
		names []string
	}{
		{"resolver_*", names(new(Resolver).options())},
		{"target_*", names(new(Handler).options())},
		{"dynamic_*", source},
		{"transport_*", append(names(new(Transport).options()), passedOn...)},
		{"proxy_*", names(new(Handler).options())},
		{"proxy_*", slices.DeleteFunc(slices.Clone(source), ofTarget)},
		{"proxy_*", append(names(new(Transport).options()), slices.DeleteFunc(slices.Clone(passedOn),
			func(name string) bool { return name == "tls_trusted_ca_certs" })...)}, // excludes tls_trust_pool
	} {
		files, err := filepath.Glob(strings.Replace(goldens, "*", test.files, 1))
		if err != nil || len(files) == 0 {
			t.Fatalf("no goldens %s: %v", test.files, err)
		}
		seen := make(map[string]bool)
		for _, file := range files {
			text, _ := readGolden(t, file)
			for line := range strings.Lines(text) {
				if fields := strings.Fields(line); len(fields) > 0 {
					seen[fields[0]] = true
				}
			}
		}
		for _, name := range test.names {
			if !seen[name] {
				t.Errorf("no golden %s has %s", test.files, name)
			}
		}
	}
}

// TestCaddyfileHTTPOptions compares the options that target_proxy hands to the
// transport with those that Caddy's parser knows.
func TestCaddyfileHTTPOptions(t *testing.T) {
	pkg, err := build.Import(reflect.TypeFor[reverseproxy.Handler]().PkgPath(), ".", build.FindOnly)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(pkg.Dir, "caddyfile.go"))
	if err != nil {
		t.Fatal(err)
	}
	_, source, _ := strings.Cut(string(data), "func (h *HTTPTransport) UnmarshalCaddyfile(")
	source, _, _ = strings.Cut(source, "\n}\n")
	var known []string
	for _, m := range regexp.MustCompile(`\n\t\tcase (.*):\n`).FindAllStringSubmatch(source, -1) {
		for name := range strings.SplitSeq(m[1], ", ") {
			known = append(known, strings.Trim(name, `"`))
		}
	}
	if len(known) == 0 {
		t.Fatal("no options in Caddy's source")
	}
	ours := slices.Sorted(slices.Values(httpOptions))
	slices.Sort(known)
	if !slices.Equal(ours, known) {
		t.Errorf("httpOptions: got\n%s\nwant those of Caddy:\n%s", ours, known)
	}
}

// TestAdaptRoundTrip unmarshals all of ours in the JSON of the goldens, as
// strictly as Caddy does, and marshals it again.
func TestAdaptRoundTrip(t *testing.T) {
	eachGolden(t, func(t *testing.T, file, text, want string) {
		var config map[string]any
		if err := json.Unmarshal([]byte(want), &config); err != nil {
			t.Fatal(err)
		}
		count := 0
		same := func(object map[string]any, inlineKey string, into any) {
			count++
			object = maps.Clone(object)
			delete(object, inlineKey)
			before, err := json.Marshal(object)
			if err != nil {
				t.Fatal(err)
			}
			decoder := json.NewDecoder(bytes.NewReader(before))
			decoder.DisallowUnknownFields()
			if err := decoder.Decode(into); err != nil {
				t.Fatalf("%s: %v", before, err)
			}
			after, err := json.Marshal(into)
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]any
			if err := json.Unmarshal(after, &got); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, object) {
				t.Errorf("%T:\ngot  %s\nwant what it came from: %s", into, after, before)
			}
		}
		var walk func(value any)
		walk = func(value any) {
			switch value := value.(type) {
			case []any:
				for _, v := range value {
					walk(v)
				}
			case map[string]any:
				switch "target" {
				case value["handler"]:
					same(value, "handler", new(Handler))
				case value["source"]:
					same(value, "source", new(Upstreams))
				case value["protocol"]:
					same(value, "protocol", new(Transport))
				}
				for _, v := range value {
					walk(v)
				}
			}
		}
		walk(config)
		if app, ok := config["apps"].(map[string]any)["target"].(map[string]any); ok {
			same(app, "", new(App))
		}
		if count == 0 {
			t.Error("nothing of ours in it")
		}
	})
}

// in puts lines into a block.
func in(opening string, lines ...string) string {
	var b strings.Builder
	b.WriteString(opening + " {\n")
	for _, l := range lines {
		for line := range strings.Lines(l) {
			b.WriteString("\t" + strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	b.WriteString("}")
	return b.String()
}

func site(lines ...string) string { return in(":8080", lines...) + "\n" }

// What is refused is tried in every directive that has it.
var (
	inResolver = func(lines ...string) []string { return inAll(resolverPlaces, lines) }
	inGlobal   = func(lines ...string) string {
		return in("", in("target", in("resolver", lines...))) + site("respond ok")
	}
	inTarget = func(lines ...string) string { return site(in("target {header.X-Target}", lines...)) }
	inSource = func(lines ...string) string { return site(in("reverse_proxy", in("dynamic target", lines...))) }
	inNamed  = func(lines ...string) string {
		return site(in("reverse_proxy", in("dynamic target app.test 80", lines...)))
	}
	inTemplate = func(lines ...string) string {
		return site(in("reverse_proxy", in("dynamic target {host} 80", lines...)))
	}
	inTransport = func(lines ...string) string { return site(in("reverse_proxy", in("transport target", lines...))) }
	inProxy     = func(lines ...string) string { return site(in("target_proxy {header.X-Target}", lines...)) }
	inHandler   = func(lines ...string) []string { return []string{inTarget(lines...), inProxy(lines...)} }
	inGuard     = func(lines ...string) []string { return append(inHandler(lines...), inTemplate(lines...)) }
	inOffer     = func(lines ...string) []string {
		return []string{inSource(lines...), inNamed(lines...), inProxy(lines...)}
	}
	inRoundTrip = func(lines ...string) []string { return []string{inTransport(lines...), inProxy(lines...)} }

	resolverPlaces = []func(lines ...string) string{
		inGlobal,
		func(lines ...string) string { return inTarget(in("resolver", lines...)) },
		func(lines ...string) string { return inProxy(in("resolver", lines...)) },
		func(lines ...string) string { return inNamed(in("resolver", lines...)) },
	}
)

func inAll(places []func(lines ...string) string, lines []string) []string {
	var all []string
	for _, place := range places {
		all = append(all, place(lines...))
	}
	return all
}

const ordinary = "respond ok"

// TestCaddyfileErrors has what is refused, with the reason. The line that the
// error names is the one that ends in "# here". It is long because its table is.
func TestCaddyfileErrors(t *testing.T) {
	const (
		args    = "wrong argument count or unexpected line ending after"
		unknown = "unrecognized subdirective"
	)
	one := func(text string) []string { return []string{text} }
	for _, test := range []struct {
		name   string
		texts  []string
		reason string
	}{
		// the global option
		{"global option with argument", one(in("", "target x # here") + site(ordinary)), args + " 'x'"},
		{"global option twice", one(in("", "target", "target { # here", "resolver", "}") + site(ordinary)), "target already specified"},
		{"global option unknown", one(in("", in("target", "zone x # here")) + site(ordinary)), unknown + " zone"},
		{"global option, two resolvers", one(in("", in("target", "resolver 10.0.0.53", "resolver 10.0.0.54 # here")) + site(ordinary)), "resolver already specified"},

		// the resolver
		{"resolver unknown", inResolver("timeout 1s", "nonsense 1 # here"), unknown + " nonsense"},
		{"resolver block after a value", inResolver("timeout 1s { # here", "}"), unknown + " {"},
		{"resolver bad argument", one(in("", in("target", "resolver 10.0.0.53 dns.test { # here", "timeout 1s", "}")) + site(ordinary)), `nameserver "dns.test": not an IP address`},
		{"resolver twice in target", one(inTarget("resolver", "resolver # here")), "resolver already specified"},
		{"resolver twice in target_proxy", one(inProxy("resolver", "resolver # here")), "resolver already specified"},
		{"resolver twice in dynamic", one(inNamed("resolver", "resolver # here")), "resolver already specified"},
		{"nameservers none", inResolver("nameservers # here"), args + " 'nameservers'"},
		{"nameservers name", inResolver("nameservers 10.0.0.53", "nameservers dns.test # here"), `nameserver "dns.test": not an IP address`},
		{"nameservers port", inResolver("nameservers 10.0.0.53:0 # here"), `port "0" is not a number from 1 to 65535`},
		{"nameservers port too large", inResolver("nameservers 10.0.0.53:65536 # here"), `port "65536" is not a number from 1 to 65535`},
		{"nameservers scheme", inResolver("nameservers quic://10.0.0.53 # here"), `unknown scheme "quic"`},
		{"nameservers CIDR", inResolver("nameservers 10.0.0.0/8 # here"), "not an IP address"},
		{"family", inResolver("family ipv5 # here"), `unknown family "ipv5": expecting auto, ipv4, ipv6, prefer_ipv4 or prefer_ipv6`},
		{"family none", inResolver("family # here"), args + " 'family'"},
		{"family two", inResolver("family ipv4 ipv6 # here"), args + " 'ipv4'"},
		{"min_ttl over max_ttl", inResolver("tries 1", "max_ttl 1m", "min_ttl 1h # here", "stale off"), "min_ttl 1h0m0s is longer than max_ttl 1m0s"},
		{"max_ttl under min_ttl", inResolver("min_ttl 1h", "max_ttl 1m # here", "stale off"), "min_ttl 1h0m0s is longer than max_ttl 1m0s"},
		{"max_ttl under the default", inResolver("max_ttl 500ms # here", "stale off"), "min_ttl 1s is longer than max_ttl 500ms"},
		{"tries over nameservers", inResolver("nameservers 10.0.0.53", "tries 4 # here", "stale off"), "tries 4 is more than 3 for each of 1 nameservers (RFC 9520)"},
		{"tries over a zone's", inResolver("nameservers 10.0.0.53 10.0.1.53", "zone a.test 10.0.0.53 10.0.1.53", "zone b.test 10.0.0.53", "tries 6 # here"), "tries 6 is more than 3 for each of 1 nameservers of zone b.test (RFC 9520)"},
		{"a zone under tries", inResolver("nameservers 10.0.0.53 10.0.1.53", "tries 6", "zone b.test 10.0.0.53 # here"), "tries 6 is more than 3 for each of 1 nameservers of zone b.test (RFC 9520)"},
		{"zone none", inResolver("zone # here"), args + " 'zone'"},
		{"zone without nameservers", inResolver("zone consul # here"), args + " 'consul'"},
		{"zone twice", inResolver("zone consul 10.0.0.53", "zone consul 10.0.1.53 # here"), "zone consul already specified"},
		{"zone twice, another spelling", inResolver("zone consul 10.0.0.53", "zone Consul. 10.0.1.53 # here"), "zone consul already specified"},
		{"zone root", inResolver("zone . 10.0.0.53 # here"), `zone ".": all names that are in no zone belong to nameservers`},
		{"zone leading dot", inResolver("zone .consul 10.0.0.53 # here"), `zone ".consul": the name has an empty label`},
		{"zone wildcard", inResolver("zone *.consul 10.0.0.53 # here"), `zone "*.consul": the name has a character`},
		{"zone address", inResolver("zone 10.0.0.1 10.0.0.53 # here"), `zone "10.0.0.1": an IP address is not a name`},
		{"zone IPv6 address", inResolver("zone ::1 10.0.0.53 # here"), `zone "::1": an IP address is not a name`},
		{"zone localhost", inResolver("zone localhost 10.0.0.53 # here"), `zone "localhost": such names are never asked for`},
		{"zone below localhost", inResolver("zone a.LOCALHOST 10.0.0.53 # here"), `zone "a.LOCALHOST": such names are never asked for`},
		{"zone invalid", inResolver("zone a.invalid 10.0.0.53 # here"), `zone "a.invalid": such names are never asked for`},
		{"zone onion", inResolver("zone onion 10.0.0.53 # here"), `zone "onion": such names are never asked for`},
		{"zone nameserver", inResolver("zone a.test 10.0.0.53", "zone consul 10.0.0.53 dns.test # here", "tries 1"), `zone consul: nameserver "dns.test": not an IP address`},
		{"zone nameserver port", inResolver("zone consul 10.0.0.53:0 # here"), `zone consul: nameserver "10.0.0.53:0": port "0" is not a number from 1 to 65535`},
		{"preload none", inResolver("preload # here"), args + " 'preload'"},
		{"preload malformed", inResolver("preload a.test", "preload b.test a..test # here", "tries 1"), `preload "a..test": the name has an empty label`},
		{"preload url", inResolver("preload http://a.test # here"), `preload "http://a.test"`},
		{"preload service", inResolver("preload _http._tcp.a.test # here"), `preload "_http._tcp.a.test": a service cannot be preloaded`},
		{"preload address", inResolver("preload 192.0.2.1 # here"), `preload "192.0.2.1": an IP address is not a name`},
		{"preload localhost", inResolver("preload localhost # here"), `preload "localhost": such names are never asked for`},
		{"preload onion", inResolver("preload a.onion # here"), `preload "a.onion": such names are never asked for`},
		{"refresh always and more", inResolver("refresh always 1h # here"), args},
		{"refresh never", inResolver("refresh never # here"), `"never" is not a duration`},
		{"refresh twice", inResolver("refresh always", "refresh 1h # here"), "refresh already specified"},
		{"refresh_queries none", inResolver("refresh_queries # here"), args + " 'refresh_queries'"},
		{"refresh_queries 0", inResolver("refresh_queries 0 # here"), `refresh_queries "0" is not a positive number`},
		{"refresh_queries off", inResolver("refresh_queries off # here"), `refresh_queries "off" is not a positive number`},
		{"refresh_queries two", inResolver("refresh_queries 1 2 # here"), args},
		{"refresh_queries twice", inResolver("refresh_queries 1", "refresh_queries 2 # here"), "refresh_queries already specified"},
		{"refresh_queries too many", inResolver("refresh_queries 1001 # here"), "refresh_queries 1001 is not a number from 1 to 1000"},
		{"refresh_queries and refresh always", inResolver("refresh always", "refresh_queries 2 # here"), "refresh_queries has no meaning where all names are refreshed"},
		{"refresh_queries and refresh off", inResolver("refresh_queries 2", "refresh off # here"), "refresh_queries has no meaning where no name is refreshed"},
		{"stale always", inResolver("stale always # here"), `"always" is not a duration`},
		{"search argument", inResolver("search corp.test # here"), args + " 'corp.test'"},
		{"search twice", inResolver("search", "search # here"), "search already specified"},
		{"preload of a device", inResolver("cache_size 5", "preload a.example /dev/zero # here"), "preload: /dev/zero is not a regular file"},
		{"hosts of a device", inResolver("cache_size 5", "hosts /dev/zero # here", "deadline 1s"), "hosts: /dev/zero is not a regular file"},
		{"tls_trusted_ca_certs none", inResolver("tls_trusted_ca_certs # here"), args + " 'tls_trusted_ca_certs'"},
		{"tls_trusted_ca_certs without use", inResolver("nameservers 10.0.0.53 tcp://10.0.0.53", "tls_trusted_ca_certs a.pem # here", "zone consul 10.0.0.53"), "tls_trusted_ca_certs without a nameserver with tls:// or https://"},
		{"tls_trusted_ca_certs for the system's", inResolver("tls_trusted_ca_certs a.pem # here"), "tls_trusted_ca_certs without a nameserver with tls:// or https://"},
		{"persist always", inResolver("persist always # here"), `"always" is not a duration`},
		{"persist none", inResolver("persist # here"), args + " 'persist'"},
		{"persist two", inResolver("persist off 1h # here"), args},
		{"persist short", inResolver("persist 999ms # here"), "persist 999ms is shorter than 1s"},
		{"persist twice", inResolver("persist 1m", "persist off # here"), "persist already specified"},
		{"new_names none", inResolver("new_names # here"), args + " 'new_names'"},
		{"new_names 0", inResolver("new_names 0 # here"), `new_names "0" is not a positive number`},
		{"new_names twice", inResolver("new_names 1", "new_names 2 # here"), "new_names already specified"},
		{"new_names too many", inResolver("new_names 100000001 # here"), "new_names 100000001 is not a number from 1 to 100000000"},
		{"hosts none", inResolver("hosts # here"), args + " 'hosts'"},
		{"hosts two", inResolver("hosts a b # here"), args + " 'a'"},
		{"hosts twice", inResolver("hosts a", "hosts b # here"), "hosts already specified"},
		{"stale two", inResolver("stale off 1h # here"), args},
		{"stale never", inResolver("stale never # here"), `"never" is not a duration`},
		{"timeout off", inResolver("timeout off # here"), `"off" is not a duration`},

		// target, and target_proxy where that is the same
		{"no url", one(site("target # here")), args + " 'target'"},
		{"no url but a matcher", one(site("target /api/* # here")), args + " 'target'"},
		{"no url but a block", one(site("target { # here", "ports 80", "}")), args + " 'target'"},
		{"two urls", one(site("target {header.A} {header.B} # here", ordinary)), args},
		{"empty url", one(site(`target "" # here`)), "no url"},
		{"literal without scheme", one(site("target example.com/path # here")), `target "example.com…": the scheme is missing: a target with a path begins with http:// or https://`},
		{"literal userinfo", one(site("target http://a:b@example.com # here")), "target has userinfo"},
		{"literal port", one(site("target http://example.com:70000 # here")), `port "70000" is not a number from 1 to 65535`},
		{"literal name", one(site("target http://exa_mple..com # here")), "the name has an empty label"},
		{"literal IPv6 without brackets", one(site("target http://::1/ # here")), "IPv6 address without brackets"},
		{"literal space", one(site("target \"http://a.test/a b\" # here")), "space"},
		{"literal in a block", one(site("target http://[1::2/ { # here", "ports 80", "}")), `target "http://[1::2…"`},
		{"proxy no url", one(site("target_proxy # here")), args + " 'target_proxy'"},
		{"proxy no url but a block", one(site("target_proxy { # here", "ports 80", "}")), args + " 'target_proxy'"},
		{"proxy two urls", one(site("target_proxy {header.A} {header.B} # here")), args},
		{"proxy bad literal", one(site("target_proxy http://a:b@example.com { # here", "ports 80", "}")), "target has userinfo"},
		{"proxy undefined matcher", one(site("target_proxy @none {header.A} # here")), "unrecognized matcher name: @none"},
		{"unknown in target", one(inTarget("ports 80", "nonsense # here")), unknown + " nonsense"},
		{"max_upstreams in target", one(inTarget("max_upstreams 2 # here")), unknown + " max_upstreams"},
		{"read_timeout in target", one(inTarget("read_timeout 2s # here")), unknown + " read_timeout"},
		{"path none", inHandler("path # here"), args + " 'path'"},
		{"path two", inHandler("path /a /b # here"), args + " '/a'"},
		{"path twice", inHandler("path /a", "path /b # here"), "path already specified"},
		{"path with a space", inHandler(`path "/a b" # here`), `path "/a b": space`},
		{"host none", inHandler("host # here"), args + " 'host'"},
		{"host twice", inHandler("host a", "host a # here"), "host already specified"},
		{"host with a space", inHandler(`host "a b" # here`), `host "a b" is not a valid Host header`},
		{"host with a zone", inHandler(`host "[fe80::1%25eth0]" # here`), `host "[fe80::1%25eth0]" is not a valid Host header`},
		{"timeout none", inHandler("timeout # here"), args + " 'timeout'"},
		{"timeout number", inHandler("timeout 100 # here", "ports 80"), `timeout "100" is not a duration`},
		{"timeout 0", inHandler("timeout 0s # here", "ports 80"), "timeout 0s is not a positive duration"},
		{"timeout twice", inHandler("timeout 1s", "timeout 1s # here"), "timeout already specified"},
		{"log_failures none", inHandler("log_failures # here"), args + " 'log_failures'"},
		{"log_failures word", inHandler("log_failures all # here"), `log_failures "all" is none of debug, info, warn and error`},
		{"log_failures twice", inHandler("log_failures warn", "log_failures info # here"), "log_failures already specified"},
		{"proxy_status none", inHandler("proxy_status # here"), args + " 'proxy_status'"},
		{"proxy_status word", inHandler("proxy_status full # here"), `proxy_status "full" is none of on, details and off`},
		{"proxy_status twice", inHandler("proxy_status on", "proxy_status off # here"), "proxy_status already specified"},
		{"max_requests none", inHandler("max_requests # here"), args + " 'max_requests'"},
		{"max_requests 0", inHandler("max_requests 0 # here"), `"0" is not a positive number`},
		{"max_requests word", inHandler("max_requests many # here"), `"many" is not a positive number`},
		{"max_requests twice", inHandler("max_requests 1", "max_requests 2 # here"), "max_requests already specified"},
		{"follow_redirects none", inHandler("follow_redirects # here"), args + " 'follow_redirects'"},
		{"follow_redirects two", inHandler("follow_redirects 1 2 # here"), args},
		{"follow_redirects 0", inHandler("follow_redirects 0 # here"), `"0" is not a positive number`},
		{"follow_redirects word", inHandler("follow_redirects all # here"), `"all" is not a positive number`},
		{"follow_redirects twice", inHandler("follow_redirects 1", "follow_redirects 2 # here"), "follow_redirects already specified"},
		{"unknown in follow_redirects", inHandler("follow_redirects 3 {", "drop A", "nonsense # here", "}"), unknown + " nonsense"},
		{"status none", inHandler("follow_redirects 3 {", "status # here", "}"), args + " 'status'"},
		{"status word", inHandler("follow_redirects 3 {", "status 307 3xx # here", "}"), `status "3xx" is not a status code`},
		{"status no redirect", inHandler("follow_redirects 3 {", "status 307 304 # here", "}"), "status 304 is not one of 301, 302, 303, 307 and 308"},
		{"max_body none", inHandler("follow_redirects 3 {", "max_body # here", "}"), args + " 'max_body'"},
		{"max_body word", inHandler("follow_redirects 3 {", "max_body much # here", "}"), `max_body "much" is not a positive size`},
		{"max_body 0", inHandler("follow_redirects 3 {", "max_body 0 # here", "}"), `max_body "0" is not a positive size`},
		{"max_body too large", inHandler("follow_redirects 3 {", "max_body 2GiB # here", "}"), "max_body 2147483648 is not a number from 1 to 1073741824"},
		{"max_body twice", inHandler("follow_redirects 3 {", "max_body 1MB", "max_body 1MB # here", "}"), "max_body already specified"},
		{"drop none", inHandler("follow_redirects 3 {", "drop # here", "}"), args + " 'drop'"},
		{"drop a space", inHandler("follow_redirects 3 {", `drop A "B C" # here`, "}"), `drop: "B C" is not the name of a header field`},
		{"drop an asterisk", inHandler("follow_redirects 3 {", "drop * # here", "}"), `drop: "*" is not the name of a header field`},
		{"schemes none", inHandler("schemes # here"), args + " 'schemes'"},
		{"schemes unknown", inHandler("schemes http", "schemes ftp # here"), `schemes: entry "ftp"`},

		// the guard
		{"guard none", inGuard("guard # here"), args + " 'guard'"},
		{"guard two", inGuard("guard enforce report # here"), args},
		{"guard twice", inGuard("guard report", "guard report # here"), "guard already specified"},
		{"guard unknown", inGuard("guard off # here"), `guard: unknown mode "off": expecting enforce or report`},
		{"allow none", inGuard("allow # here"), args + " 'allow'"},
		{"allow url", inGuard("allow a.test", "allow http://b.test # here", "ports 80"), `allow: entry "http://b.test": a name has no scheme`},
		{"allow port", inGuard("allow a.test:80 # here"), `allow: entry "a.test:80": a name has no port`},
		{"allow wildcard", inGuard("allow a.*.test # here"), `allow: entry "a.*.test": a wildcard stands only alone`},
		{"allow empty label", inGuard("allow a..test # here"), `allow: entry "a..test": the name has an empty label`},
		{"deny none", inGuard("deny # here"), args + " 'deny'"},
		{"deny CIDR", inGuard("deny 10.0.0.0/8 # here"), `deny: entry "10.0.0.0/8": a name has no slash`},
		{"allow_ips none", inGuard("allow_ips # here"), args + " 'allow_ips'"},
		{"allow_ips name", inGuard("allow_ips a.test # here"), `allow_ips: entry "a.test": neither an IP address nor a CIDR`},
		{"allow_ips bits", inGuard("allow_ips 10.0.0.0/33 # here"), `allow_ips: entry "10.0.0.0/33": neither an IP address nor a CIDR`},
		{"allow_ips multicast", inGuard("allow_ips 224.0.0.1 # here"), `allow_ips: entry "224.0.0.1": unspecified, broadcast and multicast addresses cannot be allowed`},
		{"deny_ips none", inGuard("deny_ips # here"), args + " 'deny_ips'"},
		{"deny_ips any", inGuard("deny_ips any # here"), `deny_ips: entry "any"`},
		{"deny_ips zone", inGuard("deny_ips fe80::1%eth0 # here"), `deny_ips: entry "fe80::1%eth0": addresses with a zone cannot be called`},
		{"ports none", inGuard("ports # here"), args + " 'ports'"},
		{"ports 0", inGuard("ports 0 # here"), `port "0" is not a number from 1 to 65535`},
		{"ports too large", inGuard("ports 80", "ports 443 65536 # here", "deny a.test"), `port "65536" is not a number from 1 to 65535`},
		{"ports name", inGuard("ports https # here"), `port "https" is not a number from 1 to 65535`},
		{"ports backwards", inGuard("ports 90-80 # here"), "the range ends before it begins"},
		{"ports open", inGuard("ports 90- # here"), `port "" is not a number from 1 to 65535`},

		// the source
		{"unknown in dynamic", []string{inSource("nonsense # here"), inNamed("max_fails 1", "nonsense # here")}, unknown + " nonsense"},
		{"schemes in dynamic", one(inTemplate("ports 80", "schemes http # here")), unknown + " schemes"},
		{"dynamic with a bad name only", one(site(in("reverse_proxy", "dynamic target app..test # here"))), "the name has an empty label"},
		{"dynamic with an empty port", one(site(in("reverse_proxy", `dynamic target app.test "" # here`))), "no port"},
		{"dynamic with a service and a port", one(site(in("reverse_proxy", "dynamic target _http._tcp.app.test 80 # here"))), "_http._tcp.app.test is the name of a service, whose SRV records have the ports: no port goes with it"},
		{"dynamic with a bad service", one(site(in("reverse_proxy", "dynamic target _http._tcp..test { # here", "max_fails 1", "}"))), "the name has an empty label"},
		{"dynamic with services and no guard", one(site(in("reverse_proxy", "dynamic target _http._tcp.{host} { # here", "max_fails 1", "}"))), "has placeholders: say what may be called"},
		{"ports with a literal service", one(site(in("reverse_proxy", in("dynamic target _http._tcp.app.test", "ports 80 # here")))), "has no placeholders and is not checked"},
		{"dynamic with three", one(site(in("reverse_proxy", "dynamic target app.test 80 81 # here"))), args + " '81'"},
		{"dynamic with a bad name", one(site(in("reverse_proxy", "dynamic target app..test 80 { # here", "max_fails 1", "}"))), "the name has an empty label"},
		{"dynamic with a bad port", one(site(in("reverse_proxy", "dynamic target app.test http { # here", "resolver", "max_fails 1", "}"))), `port "http" is not a number from 1 to 65535`},
		{"dynamic with port 0", one(site(in("reverse_proxy", "dynamic target app.test 0 # here"))), `port "0" is not a number from 1 to 65535`},
		{"dynamic with a url", one(site(in("reverse_proxy", "dynamic target http://app.test 80 # here"))), "app.test"},
		{"placeholders without a guard", one(site(in("reverse_proxy", "dynamic target {host} 80 { # here", "resolver", "}"))), "the name {http.request.host} has placeholders: say what may be called"},
		{"placeholders without a block", one(site(in("reverse_proxy", "dynamic target {host} 80 # here"))), "the name {http.request.host} has placeholders: say what may be called"},
		{"resolver without a name", one(inSource("max_fails 1", "resolver 10.0.0.53 { # here", "tries 1", "}", "max_upstreams 1")), "without a name, the resolver and what may be called are configured at the target handler"},
		{"guard without a name", one(inSource("max_fails 1", "ports 80 # here", "max_upstreams 1")), "without a name, the resolver and what may be called are configured at the target handler"},
		{"guard with a literal name", one(inNamed("resolver", "guard report # here", "max_fails 1")), "the name app.test has no placeholders and is not checked"},
		{"allow with a literal name", one(inNamed("resolver", "allow app.test # here", "max_fails 1")), "the name app.test has no placeholders and is not checked"},
		{"deny with a literal name", one(inNamed("resolver", "deny app.test # here", "max_fails 1")), "the name app.test has no placeholders and is not checked"},
		{"allow_ips with a literal name", one(inNamed("resolver", "allow_ips any # here", "max_fails 1")), "the name app.test has no placeholders and is not checked"},
		{"deny_ips with a literal name", one(inNamed("resolver", "deny_ips ::1 # here", "max_fails 1")), "the name app.test has no placeholders and is not checked"},
		{"ports with a literal name", one(inNamed("resolver", "ports 80 # here", "max_fails 1")), "the name app.test has no placeholders and is not checked"},
		{"max_upstreams none", inOffer("max_upstreams # here"), args + " 'max_upstreams'"},
		{"max_upstreams 0", inOffer("max_upstreams 0 # here"), `"0" is not a positive number`},
		{"max_upstreams twice", inOffer("max_upstreams 1", "max_upstreams 2 # here"), "max_upstreams already specified"},
		{"max_fails negative", inOffer("max_fails -1 # here"), `"-1" is not a positive number`},
		{"max_fails twice", inOffer("max_fails 1", "max_fails 2 # here"), "max_fails already specified"},
		{"fail_duration none", inOffer("fail_duration # here"), args + " 'fail_duration'"},
		{"fail_duration number", inOffer("fail_duration 10 # here"), `"10" is not a duration`},
		{"fail_duration negative", inOffer("fail_duration -1s # here"), "fail_duration -1s is negative"},
		{"fail_duration twice", inOffer("fail_duration 1s", "fail_duration 2s # here"), "fail_duration already specified"},

		// the transport
		{"transport with argument", one(site(in("reverse_proxy", "transport target x { # here", "tls", "}"))), args + " 'x'"},
		{"unknown in transport", one(inTransport("tls", "nonsense # here", "compression off")), unknown + " nonsense"},
		{"ports in transport", one(inTransport("tls", "ports 80 # here")), unknown + " ports"},
		{"tls_session_cache none", inRoundTrip("tls_session_cache # here"), args + " 'tls_session_cache'"},
		{"tls_session_cache 0", inRoundTrip("tls_session_cache 0 # here"), `"0" is not a positive number`},
		{"tls_session_cache word", inRoundTrip("tls_session_cache on # here"), `"on" is not a positive number`},
		{"tls_session_cache two", inRoundTrip("tls_session_cache off 1 # here"), args},
		{"tls_session_cache twice", inRoundTrip("tls_session_cache off", "tls", "tls_session_cache 1 # here"), "tls_session_cache already specified"},
		{"network_proxy", inRoundTrip("tls", "network_proxy url http://10.0.0.1 # here", "compression off"), "a proxy for the transport is not supported"},
		{"network_proxy with a block", inRoundTrip("tls", "network_proxy none { # here", "}", "compression off"), "a proxy for the transport is not supported"},
		{"forward_proxy_url", inRoundTrip("tls", "forward_proxy_url http://10.0.0.1 # here", "compression off"), "a proxy for the transport is not supported"},
		{"resolvers", inRoundTrip("tls", "resolvers 10.0.0.53 # here", "compression off"), "names are resolved by the target's resolver"},
		{"dial_fallback_delay", inRoundTrip("tls", "dial_fallback_delay 1s # here", "compression off"), "dial_fallback_delay is not supported"},
		{"dial_fallback_delay off", inRoundTrip("dial_fallback_delay -1s # here"), "dial_fallback_delay is not supported"},
		{"tls_except_ports", inRoundTrip("tls", "tls_except_ports 80 # here", "compression off"), "tls_except_ports is not supported"},
		{"versions 3", inRoundTrip("tls", "versions 3 # here", "compression off"), "HTTP version 3 is not supported"},
		{"versions 3 too", inRoundTrip("versions 1.1 2 3 # here"), "HTTP version 3 is not supported"},
		{"versions unknown", inRoundTrip("tls", "versions 1.1 4 # here"), `unknown HTTP version "4"`},
		{"versions none", inRoundTrip("versions # here"), args + " 'versions'"},
		{"Caddy's option", inRoundTrip("tls", "read_timeout soon # here", "compression off"), "invalid read timeout duration 'soon'"},
		{"Caddy's option in a block", inRoundTrip("tls_trust_pool file {", "nonsense x # here", "}", "compression off"), "unrecognized directive: nonsense"},
		{"two trust pools", inRoundTrip("tls_trust_pool system", "tls_trust_pool system # here"), `cannot specify "tls_trust_pool" twice`},
		{"trust pool and certs", inRoundTrip("tls_trusted_ca_certs a.pem", "tls_trust_pool system # here"), "cannot specify both"},

		// the shortcut
		{"to in target_proxy", one(inProxy("ports 80", "to localhost:80 # here", "ports 81")), "to has no place in target_proxy"},
		{"dynamic in target_proxy", one(inProxy("ports 80", "dynamic a { # here", "name a.test", "}")), "dynamic has no place in target_proxy"},
		{"transport in target_proxy", one(inProxy("ports 80", "transport http { # here", "tls", "}")), "transport has no place in target_proxy"},
		{"health_uri in target_proxy", one(inProxy("health_uri / # here")), "health_uri: active health checks do not work"},
		{"health_headers in target_proxy", one(inProxy("ports 80", "health_headers { # here", "A b", "}")), "health_headers: active health checks do not work"},
		{"unknown in target_proxy", one(inProxy("ports 80", "nonsense # here", "ports 81")), unknown + " nonsense"},
		{"reverse_proxy's option", one(inProxy("ports 80", "lb_retries often # here", "ports 81")), "bad lb_retries number 'often'"},
		{"reverse_proxy's block", one(inProxy("ports 80", "handle_response nonsense { # here", ordinary, "}")), "must use a named response matcher"},
		{"undefined response matcher", one(inProxy("ports 80", "replace_status @none 200 # here")), "no named response matcher defined with name 'none'"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, text := range test.texts {
				checkError(t, text, test.reason)
			}
		})
	}

	const (
		bad = "is not a duration"
		num = "is not a positive number"
	)
	for _, name := range []string{"timeout", "deadline", "min_ttl", "max_ttl", "negative_ttl", "stale", "stale_wait", "refresh"} {
		t.Run("resolver "+name, func(t *testing.T) {
			for lines, reason := range map[string]string{
				name + " # here":                              args + " '" + name + "'",
				name + " 1m 1m # here":                        args,
				name + " soon # here":                         `"soon" ` + bad,
				name + " 5 # here":                            `"5" ` + bad,
				name + " 0s # here":                           name + " 0s is not a positive duration",
				name + " -1s # here":                          name + " -1s is not a positive duration",
				name + " 1m\ntries 1\n" + name + " 1m # here": name + " already specified",
			} {
				for _, text := range inResolver(strings.Split(lines, "\n")...) {
					checkError(t, text, reason)
				}
			}
		})
	}
	for _, name := range []string{"tries", "cache_size", "max_lookups"} {
		t.Run("resolver "+name, func(t *testing.T) {
			for lines, reason := range map[string]string{
				name + " # here":                              args + " '" + name + "'",
				name + " 1 1 # here":                          args + " '1'",
				name + " few # here":                          `"few" ` + num,
				name + " 0 # here":                            `"0" ` + num,
				name + " -1 # here":                           `"-1" ` + num,
				name + " 1.5 # here":                          `"1.5" ` + num,
				name + " 9999999999999999999 # here":          `"9999999999999999999" ` + num,
				name + " 1\nstale off\n" + name + " 1 # here": name + " already specified",
			} {
				for _, text := range inResolver(strings.Split(lines, "\n")...) {
					checkError(t, text, reason)
				}
			}
		})
	}
}

func checkError(t *testing.T, text, reason string) {
	t.Helper()
	line := 0
	for i, l := range strings.Split(text, "\n") {
		if strings.HasSuffix(l, "# here") {
			line = i + 1
		}
	}
	if line == 0 {
		t.Fatalf("no line is marked in\n%s", text)
	}
	config, _, err := adaptText(text)
	switch at := fmt.Sprintf(", at Testfile:%d", line); {
	case err == nil:
		t.Errorf("no error, but\n%s\nfor\n%s", config, text)
	case !strings.Contains(err.Error(), reason):
		t.Errorf("got error %v\nwant %s\nfor\n%s", err, reason, text)
	case !strings.HasSuffix(err.Error(), at):
		t.Errorf("got error %v\nwant it to end in %q\nfor\n%s", err, at, text)
	}
}

// TestCaddyfileErrorsInImports has errors in what was imported: the line is
// that of the snippet, and the import is named.
func TestCaddyfileErrorsInImports(t *testing.T) {
	for name, text := range map[string]string{
		"target":           "(s) {\n\tports 80\n\tports x\n}\n" + inTarget("import s"),
		"target_proxy":     "(s) {\n\tports 80\n\tports x\n}\n" + inProxy("import s"),
		"dynamic":          "(s) {\n\tports 80\n\tports x\n}\n" + inTemplate("import s"),
		"literal name":     "(s) {\n\tmax_fails 1\n\tports 80\n}\n" + inNamed("import s"),
		"transport":        "(s) {\n\ttls\n\tversions 3\n}\n" + inTransport("import s"),
		"proxied":          "(s) {\n\ttls\n\tversions 3\n}\n" + inProxy("import s"),
		"reverse_proxy":    "(s) {\n\tports 80\n\tlb_retries x\n}\n" + inProxy("import s"),
		"resolver":         "(s) {\n\ttries 1\n\ttries 2\n}\n" + inTarget(in("resolver", "import s")),
		"contradicts":      "(s) {\n\tmin_ttl 1h\n\tmax_ttl 1m\n}\n" + inTarget(in("resolver", "import s")),
		"whole directive":  "(s) {\n\ttarget_proxy {header.X-Target} {\n\t\tto localhost:80\n\t}\n}\n" + site("import s"),
		"url as argument":  "(s) {\n\trespond ok\n\ttarget_proxy {args[0]}\n}\n" + site("import s http://a:b@c.test"),
		"all as arguments": "(s) {\n\trespond ok\n\ttarget {args[:]}\n}\n" + site("import s http://a.test http://b.test"),
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := adaptText(text)
			if err == nil || !strings.Contains(err.Error(), ", at Testfile:3 import chain ['Testfile:") {
				t.Errorf("got error %v, want one at line 3 of\n%s", err, text)
			}
		})
	}
}

// TestAdaptErrorsInJSON has what is refused if the configuration comes as JSON.
// It is long because its table is.
func TestAdaptErrorsInJSON(t *testing.T) {
	const (
		app       = `{"apps": {"target": %s}}`
		handler   = `{"apps": {"http": {"servers": {"s": {"routes": [{"handle": [%s]}]}}}}}`
		proxy     = `{"handler": "reverse_proxy", "upstreams": [{"dial": "app.test:80"}], `
		source    = proxy + `"dynamic_upstreams": {"source": "target", %s}}`
		transport = proxy + `"transport": {"protocol": "target", %s}}`
	)
	ofTarget := func(fields string) string {
		return fmt.Sprintf(handler, `{"handler": "target", "url": "{http.request.header.X-Target}", `+fields+`}`)
	}
	ofURL := func(url string) string { return fmt.Sprintf(handler, `{"handler": "target", "url": "`+url+`"}`) }
	ofSource := func(fields string) string { return fmt.Sprintf(handler, fmt.Sprintf(source, fields)) }
	ofTransport := func(fields string) string { return fmt.Sprintf(handler, fmt.Sprintf(transport, fields)) }
	ofResolver := func(fields string) []string {
		return []string{
			fmt.Sprintf(app, `{"resolver": {`+fields+`}}`),
			ofTarget(`"resolver": {` + fields + `}`),
			ofSource(`"name": "app.test", "resolver": {` + fields + `}`),
		}
	}
	ofGuard := func(fields string) []string {
		return []string{ofTarget(fields), ofSource(`"name": "{http.request.host}", ` + fields)}
	}
	one := func(config string) []string { return []string{config} }

	before := resolversInUse()
	for _, test := range []struct {
		name    string
		configs []string
		reason  string
	}{
		{"app unknown", one(fmt.Sprintf(app, `{"nonsense": 1}`)), `unknown field "nonsense"`},
		{"resolver unknown", ofResolver(`"zone": {}`), `unknown field "zone"`},
		{"zone", ofResolver(`"zones": {"a..test": ["10.0.0.53"]}`), `zone "a..test": the name has an empty label`},
		{"zone root", ofResolver(`"zones": {".": ["10.0.0.53"]}`), `zone ".": all names that are in no zone belong to nameservers`},
		{"zone empty", ofResolver(`"zones": {"": ["10.0.0.53"]}`), `zone "": the name is empty`},
		{"zone onion", ofResolver(`"zones": {"onion": ["10.0.0.53"]}`), `zone "onion": such names are never asked for`},
		{"zone twice", ofResolver(`"zones": {"consul": ["10.0.0.53"], "CONSUL": ["10.0.0.53"]}`), "zone consul already specified"},
		{"zone without nameservers", ofResolver(`"zones": {"consul": []}`), "zone consul has no nameservers"},
		{"zone nameserver", ofResolver(`"zones": {"consul": ["dns.test"]}`), `zone consul: nameserver "dns.test": not an IP address`},
		{"zone tries", ofResolver(`"tries": 6, "zones": {"consul": ["10.0.0.53"]}`), "tries 6 is more than 3 for each of 1 nameservers of zone consul"},
		{"preload", ofResolver(`"preload": ["a.test", "a..test"]`), `preload "a..test": the name has an empty label`},
		{"refresh and refresh_always", ofResolver(`"refresh": "1m", "refresh_always": true`), "refresh and refresh_always exclude each other"},
		{"refresh_queries", ofResolver(`"refresh_queries": -1`), "refresh_queries -1 is not a number from 1 to 1000"},
		{"refresh_queries and refresh_always", ofResolver(`"refresh_queries": 1, "refresh_always": true`), "refresh_queries has no meaning where all names are refreshed"},
		{"refresh off and refresh_always", ofResolver(`"refresh": -1, "refresh_always": true`), "refresh and refresh_always exclude each other"},
		{"search", ofResolver(`"search": ["corp.test"]`), "cannot unmarshal"},
		{"tls_trusted_ca_certs without use", ofResolver(`"tls_trusted_ca_certs": ["a.pem"]`), "tls_trusted_ca_certs without a nameserver with tls:// or https://"},
		{"preload of a folder", ofResolver(`"preload": ["./testdata"]`), "preload: ./testdata is not a regular file"},
		{"hosts of a folder", ofResolver(`"hosts": "testdata"`), "hosts: testdata is not a regular file"},
		{"tls_trusted_ca_certs not there", ofResolver(`"nameservers": ["tls://192.0.2.53"], "tls_trusted_ca_certs": ["testdata/none.crt"]`), "tls_trusted_ca_certs: open testdata/none.crt: no such file"},
		{"tls_trusted_ca_certs without one", ofResolver(`"zones": {"consul": ["tls://192.0.2.53"]}, "tls_trusted_ca_certs": ["testdata/client.crt", "testdata/client.key"]`), "tls_trusted_ca_certs: testdata/client.key has no certificate"},
		{"nameserver", ofResolver(`"nameservers": ["10.0.0.53", "dns.test"]`), `nameserver "dns.test": not an IP address`},
		{"nameserver scheme", ofResolver(`"nameservers": ["quic://10.0.0.53"]`), `unknown scheme "quic"`},
		{"family", ofResolver(`"family": "ipv5"`), `unknown family "ipv5"`},
		{"timeout", ofResolver(`"timeout": "-1s"`), "timeout -1s is not a positive duration"},
		{"timeout text", ofResolver(`"timeout": "soon"`), "invalid duration"},
		{"deadline", ofResolver(`"deadline": -1`), "deadline -1ns is not a positive duration"},
		{"min_ttl", ofResolver(`"min_ttl": -1`), "min_ttl -1ns is not a positive duration"},
		{"max_ttl", ofResolver(`"max_ttl": "1ms"`), "min_ttl 1s is longer than max_ttl 1ms"},
		{"max_ttl negative", ofResolver(`"max_ttl": -1`), "max_ttl -1ns is not a positive duration"},
		{"negative_ttl", ofResolver(`"negative_ttl": -1`), "negative_ttl -1ns is not a positive duration"},
		{"stale_wait", ofResolver(`"stale_wait": -1`), "stale_wait -1ns is not a positive duration"},
		{"tries", ofResolver(`"tries": -1`), "tries -1 is not a number from 1 to 100000000"},
		{"cache_size", ofResolver(`"cache_size": -1`), "cache_size -1 is not a number from 1 to 100000000"},
		{"max_lookups", ofResolver(`"max_lookups": -1`), "max_lookups -1 is not a number from 1 to 100000000"},
		{"persist", ofResolver(`"persist": "1ms"`), "persist 1ms is shorter than 1s"},
		{"new_names", ofResolver(`"new_names": -1`), "new_names -1 is not a number from 1 to 100000000"},

		{"no url", one(fmt.Sprintf(handler, `{"handler": "target"}`)), "no url"},
		{"url", one(ofURL("http://a:b@c.test")), "target has userinfo"},
		{"url name", one(ofURL("http://a..test")), "the name has an empty label"},
		{"url port", one(ofURL("http://a.test:0")), `port "0" is not a number from 1 to 65535`},
		{"target unknown", one(ofTarget(`"max_upstreams": 1`)), `unknown field "max_upstreams"`},
		{"path", one(ofTarget(`"path": "/a b"`)), `path "/a b": space`},
		{"host", one(ofTarget(`"host": "a b"`)), `host "a b" is not a valid Host header`},
		{"target timeout", one(ofTarget(`"timeout": "soon"`)), `timeout "soon" is not a duration`},
		{"target timeout 0", one(ofTarget(`"timeout": "0s"`)), "timeout 0s is not a positive duration"},
		{"max_requests", one(ofTarget(`"max_requests": -1`)), "max_requests -1 is not a positive number"},
		{"log_failures", one(ofTarget(`"log_failures": "fatal"`)), `log_failures "fatal" is none of debug, info, warn and error`},
		{"proxy_status", one(ofTarget(`"proxy_status": "yes"`)), `proxy_status "yes" is none of on, details and off`},
		{"follow_redirects", one(ofTarget(`"follow_redirects": {}`)), "follow_redirects: max 0 is not a positive number"},
		{"follow_redirects max_body", one(ofTarget(`"follow_redirects": {"max": 1, "max_body": -1}`)), "follow_redirects: max_body -1 is not a number from 1 to 1073741824"},
		{"follow_redirects status", one(ofTarget(`"follow_redirects": {"max": 1, "status": [3]}`)), "follow_redirects: status 3 is not one of 301, 302, 303, 307 and 308"},
		{"follow_redirects drop", one(ofTarget(`"follow_redirects": {"max": 1, "drop": [""]}`)), `follow_redirects: drop: "" is not the name of a header field`},
		{"schemes", one(ofTarget(`"schemes": ["ftp"]`)), `schemes: entry "ftp"`},

		{"guard", ofGuard(`"guard": "off"`), `guard: unknown mode "off"`},
		{"allow", ofGuard(`"allow": ["http://a.test"]`), `allow: entry "http://a.test": a name has no scheme`},
		{"deny", ofGuard(`"deny": ["a.*"]`), `deny: entry "a.*": a wildcard`},
		{"allow_ips", ofGuard(`"allow_ips": ["10.0.0.0/33"]`), `allow_ips: entry "10.0.0.0/33": neither`},
		{"deny_ips", ofGuard(`"deny_ips": ["any"]`), `deny_ips: entry "any"`},
		{"ports", ofGuard(`"ports": ["90-80"]`), "the range ends before it begins"},

		{"source unknown", one(ofSource(`"nonsense": 1`)), `unknown field "nonsense"`},
		{"source schemes", one(ofSource(`"name": "{http.request.host}", "schemes": ["http"]`)), "schemes has no meaning here"},
		{"port without name", one(ofSource(`"port": "80"`)), "a port without a name"},
		{"service with a port", one(ofSource(`"name": "_http._tcp.app.test", "port": "80"`)), "no port goes with it"},
		{"service", one(ofSource(`"name": "_http._tcp..test"`)), "the name has an empty label"},
		{"no transport target", one(ofSource(`"max_fails": 2`)), "needs transport target in the same reverse_proxy"},
		{"resolver without name", one(ofSource(`"resolver": {}`)), "without a name"},
		{"guard without name", one(ofSource(`"ports": ["80"]`)), "without a name"},
		{"name without guard", one(ofSource(`"name": "{http.request.host}"`)), "the name {http.request.host} has placeholders"},
		{"literal name with guard", one(ofSource(`"name": "app.test", "ports": ["80"]`)), "the name app.test has no placeholders"},
		{"name", one(ofSource(`"name": "app..test"`)), "the name has an empty label"},
		{"port", one(ofSource(`"name": "app.test", "port": "http"`)), `port "http" is not a number from 1 to 65535`},
		{"max_upstreams", one(ofSource(`"max_upstreams": -1`)), "max_upstreams -1 is not a positive number"},
		{"max_fails", one(ofSource(`"max_fails": -1`)), "max_fails -1 is not a positive number"},
		{"fail_duration", one(ofSource(`"fail_duration": "-1s"`)), "fail_duration -1s is negative"},

		{"transport unknown", one(ofTransport(`"nonsense": 1`)), `unknown field "nonsense"`},
		{"network_proxy", one(ofTransport(`"network_proxy": {"from": "none"}`)), "a proxy for the transport is not supported"},
		{"forward_proxy_url", one(ofTransport(`"forward_proxy_url": "http://10.0.0.1"`)), "a proxy for the transport is not supported"},
		{"resolver", one(ofTransport(`"resolver": {"addresses": ["10.0.0.53"]}`)), "resolvers (in JSON, resolver) is not supported"},
		{"dial_fallback_delay", one(ofTransport(`"dial_fallback_delay": -1`)), "dial_fallback_delay is not supported"},
		{"except_ports", one(ofTransport(`"tls": {"except_ports": ["80"]}`)), "tls_except_ports is not supported"},
		{"versions 3", one(ofTransport(`"versions": ["3"]`)), "HTTP version 3 is not supported"},
		{"versions", one(ofTransport(`"versions": ["1.1", "4"]`)), `unknown HTTP version "4"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, config := range test.configs {
				err := validateJSON(t, []byte(config))
				if err == nil {
					t.Errorf("no error for %s", config)
				} else if !strings.Contains(err.Error(), test.reason) {
					t.Errorf("got error %v\nwant %s\nfor %s", err, test.reason, config)
				}
			}
		})
	}
	if after := resolversInUse(); after != before {
		t.Errorf("%d resolvers in use, %d before", after, before)
	}
}

func resolversInUse() int {
	n := 0
	resolvers.Range(func(_, _ any) bool {
		n++
		return true
	})
	return n
}

// TestExamples has the Caddyfiles that are there to be copied.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("examples/*.Caddyfile")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, file := range append(files, "Caddyfile", "deploy/Caddyfile") {
		t.Run(file, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if formatted := caddyfile.Format(text); !bytes.Equal(formatted, text) {
				t.Errorf("caddy fmt makes this of it:\n%s", formatted)
			}
			config, warnings, err := adaptText(string(text))
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range warnings {
				t.Errorf("warning: %s", w)
			}
			if err := validateJSON(t, config); err != nil {
				t.Errorf("not valid: %v", err)
			}
		})
	}
}
