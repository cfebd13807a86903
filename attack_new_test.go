package caddytarget

import (
	"fmt"
	"strings"
	"testing"
)

// The attacks on what is being built: those whose kind begins with "new: " fail
// until it is there, and those of sites that cannot be configured yet fail as a
// whole.

var newSites = []attackSite{
	{name: "metadata-allowed", rules: "allow metadata.google.internal"},
	{name: "metadata-below", rules: "allow *.google.internal *.ec2.internal"},
	{name: "metadata-all", rules: "allow *"},
}

var newGroups = []attackGroup{
	{kind: "new: names of metadata services", dns: []string{
		"metadata.google.internal " + evilAddr, "metadata.goog " + evilAddr, "instance-data " + evilAddr,
		"instance-data.ec2.internal 169.254.169.254", "my-metadata.google.internal " + goodAddr, "metadata.google.internal.example " + goodAddr,
	}, plain: [][3]string{
		{"Google's", "http://metadata.google.internal/computeMetadata/v1/", "403"},
		{"Google's, upper case", "http://METADATA.Google.Internal/", "403"},
		{"Google's, trailing dot", "http://metadata.google.internal./", "403"},
		{"Google's, full-width", "http://ｍｅｔａｄａｔａ。google。internal/", "403"},
		{"Google's, soft hyphen", "http://meta\u00addata.google.internal/", "403"},
		{"Google's, https and a port", "https://metadata.google.internal:8443/", "403"},
		{"Google's, the short one", "http://metadata.goog/", "403"},
		{"EC2's", "http://instance-data/latest/meta-data/", "403"},
		{"EC2's, in full", "http://instance-data.ec2.internal/", "403"},
		{"Azure's, which does not exist", "http://metadata.azure.internal/", "403"},
		{"a name that ends like one", "http://my-metadata.google.internal/", "200 93.184.215.14 my-metadata.google.internal"},
		{"a name that begins like one", "http://metadata.google.internal.example/", "200 93.184.215.14 metadata.google.internal.example"},
	}, attacks: []attack{
		{name: "allowed by its name", site: "metadata-allowed", target: "http://metadata.google.internal/", want: "200 45.33.32.156 metadata.google.internal"},
		{name: "another one is not", site: "metadata-allowed", target: "http://metadata.goog/", want: "403"},
		{name: "a wildcard does not name it", site: "metadata-below", target: "http://metadata.google.internal/", want: "403"},
		{name: "a wildcard does not name the other", site: "metadata-below", target: "http://instance-data.ec2.internal/", want: "403"},
		{name: "nor does an asterisk", site: "metadata-all", target: "http://metadata.google.internal/", want: "403"},
		{name: "nor do all addresses", site: "any", target: "http://metadata.google.internal/", want: "403"},
	}},
}

// withoutH2C checks that the backend was not asked to go on in HTTP/2.
func withoutH2C(s seen) error {
	if upgrade := strings.Join(s.Header["Upgrade"], ", "); strings.Contains(strings.ToLower(upgrade), "h2c") {
		return fmt.Errorf("it got Upgrade: %s", upgrade)
	}
	return without("Http2-Settings")(s)
}

var newProxyGroups = []attackGroup{
	{kind: "new: upgrades to h2c", proxied: true, attacks: []attack{
		{
			name: "as clients do", raw: req("GET / HTTP/1.1", "Host: SITE", toGood+"/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
			want: "200|400 93.184.215.14 good.example /", check: withoutH2C,
		},
		{
			name: "upper case", raw: req("GET / HTTP/1.1", "Host: SITE", toGood+"/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: H2C", "HTTP2-Settings: AAMAAABkAAQAAP__"),
			want: "200|400 93.184.215.14 good.example /", check: withoutH2C,
		},
		{
			name: "Connection names Upgrade alone", raw: req("GET / HTTP/1.1", "Host: SITE", toGood+"/", "Connection: Upgrade", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
			want: "200|400 93.184.215.14 good.example /", check: withoutH2C,
		},
		{
			name: "among others", raw: req("GET / HTTP/1.1", "Host: SITE", toGood+"/", "Connection: Upgrade", "Upgrade: websocket, h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
			want: "200|400 93.184.215.14 good.example /", check: withoutH2C,
		},
		{
			name: "in a field of its own", raw: req("GET / HTTP/1.1", "Host: SITE", toGood+"/", "Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
			want: "200|400 93.184.215.14 good.example /", check: withoutH2C,
		},
		{
			name: "over TLS", raw: req("GET / HTTP/1.1", "Host: SITE", "X-Target: https://good.example/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
			want: "200|400 93.184.215.14 good.example /", check: withoutH2C,
		},
		{
			name: "HTTP2-Settings without an upgrade", raw: get("/", toGood+"/", "HTTP2-Settings: AAMAAABkAAQAAP__"),
			want: "200|400 93.184.215.14 good.example /", check: withoutH2C,
		},
	}},
}

var reportSites = []attackSite{
	{name: "report", rules: "guard report"},
	{name: "report-rules", rules: "guard report\ndeny evil.example\nports 80\nschemes https http"},
	{name: "report-service", whole: `reverse_proxy {
		dynamic target _http._tcp.{header.X-Target} {
			ports 80
			guard report
		}
		transport target
	}`},
	{name: "report-static", whole: "target {header.X-Target} {\nguard report\n}\nreverse_proxy 127.0.0.1:80 {\ntransport target\n}"},
	{name: "strict"},
}

var reportGroups = []attackGroup{
	{kind: "report", dns: []string{
		"good.example " + goodAddr, "evil.example " + evilAddr, "private.example 10.1.1.1", "mixed.example 10.1.1.1 " + goodAddr,
	}, plain: [][3]string{
		{"loopback", "http://127.0.0.1/", "200 127.0.0.1 127.0.0.1"},
		{"loopback, IPv6", "http://[::1]/", "200 ::1 [::1]"},
		{"metadata", "http://169.254.169.254/", "200 169.254.169.254 169.254.169.254"},
		{"a private name", "http://private.example/", "200 10.1.1.1 private.example"},
		{"mixed", "http://mixed.example/", "200 10.1.1.1|93.184.215.14 mixed.example"},
		{"localhost", "http://localhost/", "200 127.0.0.1|::1 localhost"},
		{"good", "http://good.example/", "200 93.184.215.14 good.example"},
		{"what cannot be read stays that", "http://2130706433/", "400 IPv4"},
		{"userinfo stays that", "http://a@good.example/", "400 userinfo"},
		{"what does not exist stays that", "http://nowhere.example/", "502 NXDOMAIN"},
	}, attacks: []attack{
		{name: "a denied name", site: "report-rules", target: "http://evil.example/", want: "200 45.33.32.156 evil.example"},
		{name: "a port", site: "report-rules", target: "http://good.example:8080/", want: "200 93.184.215.14 good.example:8080"},
		{name: "strict beside it, address", site: "strict", target: "http://127.0.0.1/", want: "403 loopback"},
		{name: "strict beside it, name", site: "strict", target: "http://private.example/", want: "403 private"},
	}},
	{kind: "report, proxied", proxied: true, dns: []string{
		"_http._tcp.s-private.example =_http._tcp.s-private.example. 60 IN SRV 0 0 80 private.example.",
		"_http._tcp.s-port.example =_http._tcp.s-port.example. 60 IN SRV 0 0 8080 good.example.",
	}, attacks: []attack{
		{name: "a service", site: "report-service", target: "s-private.example", want: "200 10.1.1.1 report-service.site"},
		{name: "a port of a service", site: "report-service", target: "s-port.example", want: "200 93.184.215.14 report-service.site"},
		{name: "a static upstream", site: "report-static", target: "http://good.example/", want: "200 127.0.0.1 good.example"},
		{name: "a loop is no matter of the guard", target: "http://127.0.0.1:<GATEWAY>/", want: "508 already"},
	}},
}

// TestReportVerdicts: with `guard report` all goes through.
func TestReportVerdicts(t *testing.T) {
	registerRecorder()
	a := newArena(t, reportSites, reportGroups)
	a.global = "admin off"
	a.start()
	a.play(t)
}
