//go:build linux

package caddytarget

import "testing"

// ownSites listen on every address and on one of this machine; the latter is
// not for the proxy.
var ownSites = []attackSite{
	{name: "wildcard", bind: "[::]"},
	{name: "one", bind: ownAddr2 + " 8090", whole: `respond "418 the site on one address" 418`},
	{name: "own-allowed", bind: "[::]", rules: "allow_ips " + ownAddr + " " + ownAddr2},
	{name: "own-range", bind: "[::]", rules: "allow_ips 93.184.216.0/24"},
	{name: "own-denied", bind: "[::]", rules: "allow_ips " + ownAddr2 + "\ndeny_ips " + ownAddr2},
}

var ownGroups = []attackGroup{
	{kind: "own listeners", proxied: true, dns: []string{
		"own.example " + ownAddr, "own6.example " + ownAddr6, "own2.example " + ownAddr2,
		"own2-and-good.example " + ownAddr2 + " " + goodAddr, "alias-own.example >own.example",
	}, plain: [][3]string{
		{"a listener on every address", "http://" + ownAddr + ":<GATEWAY>/", "403"},
		{"another address of this machine", "http://" + ownAddr2 + ":<GATEWAY>/", "403"},
		{"IPv6", "http://[" + ownAddr6 + "]:<GATEWAY>/", "403"},
		{"mapped", "http://[::ffff:" + ownAddr + "]:<GATEWAY>/", "403"},
		{"https", "https://" + ownAddr + ":<GATEWAY>/", "403"},
		{"full-width", "http://９３.184.216.34:<GATEWAY>/", "403"},
		{"a name", "http://own.example:<GATEWAY>/", "403"},
		{"an alias", "http://alias-own.example:<GATEWAY>/", "403"},
		{"a name, IPv6", "http://own6.example:<GATEWAY>/", "403"},
		{"loopback", "http://127.0.0.1:<GATEWAY>/", "403 loopback"},
		{"NAT64, which would come back", "http://[64:ff9b::5db8:d822]:<GATEWAY>/", "403|508"},
		{"a backend on the same address", "http://" + ownAddr + ":8080/", "200 93.184.216.34 93.184.216.34:8080"},
		{"a backend on the same address, by name", "http://own.example/", "200 93.184.216.34 own.example"},
		{"a listener on one address", "http://" + ownAddr2 + ":8090/", "403"},
		{"a listener on one address, by name", "http://own2.example:8090/", "403"},
		{"a listener on one address, and a backend elsewhere", "http://own2-and-good.example:8090/", "200 93.184.215.14 own2-and-good.example:8090"},
		{"a backend on the listener's port of another address", "http://" + ownAddr + ":8090/", "200 93.184.216.34 93.184.216.34:8090"},
		{"the admin endpoint", "http://" + ownAddr + ":2020/config/", "403"},
		{"the admin endpoint by name", "http://own.example:2020/stop", "403"},
	}, attacks: []attack{
		{name: "opened", site: "own-allowed", target: "http://" + ownAddr2 + ":8090/", want: "418"},
		{name: "opened, by name", site: "own-allowed", target: "http://own2.example:8090/", want: "418"},
		{name: "opened, itself", site: "own-allowed", target: "http://" + ownAddr + ":<GATEWAY>/", want: "508 already"},
		{name: "opened by a range", site: "own-range", target: "http://" + ownAddr2 + ":8090/", want: "418"},
		{name: "opened and denied", site: "own-denied", target: "http://" + ownAddr2 + ":8090/", want: "403 denied"},
		{name: "not opened by the other address", site: "own-allowed", target: "http://[" + ownAddr6 + "]:<GATEWAY>/", want: "403"},
	}},
}

// attackOwnListeners: what this process listens on is not for targets, even if
// it is globally routable.
func attackOwnListeners(t *testing.T) {
	a := newArena(t, ownSites, ownGroups)
	a.global = "admin " + ownAddr + ":2020"
	a.everywhere(t)
	a.backends = append(a.backends, newBackend(t, backendConfig{addrs: []string{ownAddr, goodAddr}, port: "8090"}))
	a.start()
	a.play(t)
}

// attackReporting: with `guard report` all goes through.
func attackReporting(t *testing.T) {
	a := newArena(t, reportSites, reportGroups)
	a.global = "admin off"
	a.everywhere(t)
	a.start()
	a.play(t)
}
