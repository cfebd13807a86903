package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"

	"caddytarget/internal/testlab"
)

// A contestant is a proxy that is compared. All have as many threads or workers as there
// are CPUs, write no access log, may hold idleConns connections to backends for longer
// than a comparison lasts, connect within a second, ask for A records only, and try
// another address or the same one again once.
type contestant struct {
	name  string
	about string
	needs []string // programs and files, of Debian packages:
	apt   string
	args  []string // the command
	check []string // the command that checks the configuration
	files map[string]string
	value func(w *world, domain int) string // of X-Target
	// cannot returns why there is no run with a setting, or "".
	cannot func(s setting) string
}

// The names of contestants that others are compared with, or that are special.
const (
	static     = "static"
	ours       = "caddytarget"
	oursAgain  = "caddytarget again" // what it differs is noise
	sharing    = "caddytarget with share_connections"
	asksNoName = "asks no nameserver"
)

// maxOpen is how many descriptors a process of a contestant may have, and idleConns how
// many idle connections to backends.
var (
	maxOpen   = min(20_000, openFiles())
	idleConns = maxOpen / 4 * 3
)

// openFiles returns how many descriptors a process may have here.
func openFiles() int {
	var limit syscall.Rlimit
	must(syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	return int(min(limit.Max, 1<<20))
}

// contestants, in the order of the report.
var contestants = []*contestant{
	{
		name: ours, about: "`target_proxy` with its defaults",
		args: caddyArgs("run"), check: caddyArgs("validate"),
		files: map[string]string{"Caddyfile": oursConfig},
		value: func(w *world, domain int) string {
			return fmt.Sprintf("%s://%s:%d", w.protocolOf().scheme, nameOf(domain), w.Backend)
		},
	},
	nil, // oursAgain
	nil, // sharing
	{
		name: static, about: "stock Caddy where the client names the address: no name is looked up, there is one pool for each address. It is the least that Caddy's own transport takes. What fails is left out for 10 s (`fail_duration`), as with `dynamic a`",
		args: caddyArgs("run"), check: caddyArgs("validate"),
		files: map[string]string{"Caddyfile": staticConfig},
		value: func(w *world, domain int) string {
			value := netip.AddrPortFrom(w.address(domain), uint16(w.Backend)).String()
			if w.DeadAddrs > 0 {
				value += "\r\nX-Second: " + netip.AddrPortFrom(deadAddr(domain%w.DeadAddrs), uint16(w.Backend)).String()
			}
			return value
		},
		cannot: func(s setting) string {
			if s.Case == deadNames || s.Case == noNameserver {
				return asksNoName
			}
			return ""
		},
	},
	{
		name: "dynamic a", about: "stock Caddy's `dynamic a`, `refresh` at the TTL. It caches 100 names and looks up one at a time",
		args: caddyArgs("run"), check: caddyArgs("validate"),
		files: map[string]string{"Caddyfile": dynamicConfig},
		value: func(_ *world, domain int) string { return nameOf(domain) },
	},
	{
		name: "HAProxy", about: "`do-resolve` and `set-dst`, `http-reuse always`. It keeps no answer for the next request, takes one address of a name and has no other to go to",
		needs: []string{"haproxy"}, apt: "haproxy",
		args: []string{"haproxy", "-db", "-q", "-f", "haproxy.cfg"}, check: []string{"haproxy", "-c", "-q", "-f", "haproxy.cfg"},
		files: map[string]string{"haproxy.cfg": haproxyConfig},
		value: func(_ *world, domain int) string { return nameOf(domain) },
	},
	{
		name: "nginx with Lua", about: "lua-resty-dns, a shared cache of all addresses that serves stale answers while it asks again, `balancer_by_lua` with a second try, which leaves out addresses that failed within 10 s, `keepalive`. Each worker has a pool of its own, keyed by address",
		needs: []string{
			"nginx", "/usr/lib/nginx/modules/ngx_http_lua_module.so", "/usr/share/lua/5.1/resty/core.lua",
			"/usr/share/lua/5.1/nginx/dns/resolver.lua", "/usr/share/lua/5.1/nginx/string.lua",
		},
		apt: "nginx libnginx-mod-http-lua lua-resty-core lua-nginx-dns lua-nginx-string",
		cannot: func(s setting) string {
			if s.Scheme == "h2" {
				return "speaks no HTTP/2 to backends"
			}
			return ""
		},
		args: []string{"nginx", "-e", "error.log", "-p", ".", "-c", "nginx.conf"}, check: []string{"nginx", "-t", "-q", "-e", "error.log", "-p", ".", "-c", "nginx.conf"},
		files: map[string]string{"nginx.conf": nginxConfig, "target.lua": nginxLua},
		value: func(_ *world, domain int) string { return nameOf(domain) },
	},
}

func init() {
	again := *contestants[0]
	again.name, again.about = oursAgain, "the same: by what it differs, runs differ"
	contestants[1] = &again
	shared := *contestants[0]
	shared.name, shared.about = sharing, "plain connections to one address are those of all domains there"
	shared.files = map[string]string{"Caddyfile": strings.Replace(oursConfig, "allow_ips", "share_connections\n\t\tallow_ips", 1)}
	shared.cannot = func(s setting) string {
		if s.Addresses == 0 || s.Scheme != "http" {
			return "nothing to share"
		}
		return ""
	}
	contestants[2] = &shared
}

func caddyArgs(command string) []string {
	return []string{"caddy", command, "--config", "Caddyfile", "--adapter", "caddyfile"}
}

// nameOf returns the name of a domain. Those below 0 are dead.
func nameOf(domain int) string {
	if domain < 0 {
		return "x" + strconv.Itoa(-domain) + ".dead.test"
	}
	return "d" + strconv.Itoa(domain) + ".test"
}

// missing returns what the contestant needs and this machine does not have, with how to
// get it.
func (c *contestant) missing() error {
	for _, need := range c.needs {
		_, err := exec.LookPath(need)
		if filepath.IsAbs(need) {
			_, err = os.Stat(need)
		}
		if err != nil {
			return fmt.Errorf("%s is missing: %s; apt-get install %s", c.name, need, c.apt)
		}
	}
	return nil
}

// world is what the configuration of a contestant speaks of.
type world struct {
	setting
	Address    string // on which it listens
	Admin      int    // port of Caddy's admin API
	Nameserver netip.AddrPort
	Backend    int    // port of the backends
	CA         string // file with the certificate of their authority, if they have TLS
	CPUs       int
	TTL        time.Duration
	DeadAddrs  int // that many addresses of deadAddr are those of a name too
}

// MaxOpen and IdleConns are for the templates.
func (*world) MaxOpen() int { return maxOpen }

// IdleConns returns how many idle connections there may be.
func (*world) IdleConns() int { return idleConns }

// CacheSize returns how many names a cache has to hold.
func (w *world) CacheSize() int { return max(100_000, w.Domains+1000) }

// Divide divides for templates.
func (*world) Divide(a, b int) int { return a / b }

// write makes a directory with the configuration of a contestant.
func (c *contestant) write(l *lab, w *world) (dir string) {
	dir, err := os.MkdirTemp(l.dir, "contestant-")
	must(err)
	for name, text := range c.files {
		f, err := os.Create(filepath.Join(dir, name))
		must(err)
		must(template.Must(template.New(name).Parse(text)).Execute(f, w))
		must(f.Close())
	}
	return dir
}

// command returns a command of a contestant whose configuration is in dir.
func (c *contestant) command(dir string, args []string) *exec.Cmd {
	path := args[0]
	if path == "caddy" {
		var err error
		path, err = filepath.Abs(*caddyPath)
		must(err)
	}
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	// SIGTERM if this process dies: it is also passed on to workers
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	return cmd
}

// missingWrk returns an error if wrk is not there.
func missingWrk() error {
	if _, err := exec.LookPath("wrk"); err != nil {
		return errors.New("wrk is missing: apt-get install wrk")
	}
	return nil
}

// checkAll has each contestant check its configurations, with and without TLS.
func checkAll(l *lab) error {
	failures := []error{missingWrk()}
	for _, c := range contestants {
		if err := c.missing(); err != nil {
			failures = append(failures, err)
			continue
		}
		for _, scheme := range []string{"http", "https", "h2"} {
			s := setting{Scheme: scheme, Domains: 500, Addresses: 8, Case: healthy}
			if c.cannot != nil && c.cannot(s) != "" {
				continue
			}
			w := &world{
				setting: s, Address: address(freePort()), Admin: freePort(),
				Nameserver: netip.MustParseAddrPort(l.names.addr), Backend: freePort(), CPUs: 2, TTL: 5 * time.Second,
			}
			if scheme != "http" {
				w.CA = testlab.NewAuthority(l).File
			}
			out, err := c.command(c.write(l, w), c.check).CombinedOutput()
			if err != nil {
				failures = append(failures, fmt.Errorf("%s, %s: %w\n%s", c.name, scheme, err, out))
				continue
			}
			fmt.Printf("%s, %s: the configuration is valid\n", c.name, scheme)
		}
	}
	return errors.Join(failures...)
}

// oursConfig is the Caddyfile of caddytarget.
const oursConfig = `{
	admin 127.0.0.1:{{.Admin}}
	auto_https off
	target {
		resolver {{.Nameserver}} {
			family ipv4
			timeout 500ms
			deadline 2s
			cache_size {{.CacheSize}}
		}
	}
}
http://{{.Address}} {
	target_proxy {header.X-Target} {
		allow_ips 127.0.0.0/8
		dial_timeout 1s
		keepalive 1h
		keepalive_idle_conns {{.IdleConns}}
		lb_retries 1{{if .CA}}
		tls_trust_pool file {{.CA}}{{end}}
	}
}
`

// stockTransport is the transport of stock Caddy.
const stockTransport = `
		lb_retries 1
		fail_duration 10s
		transport http {
			dial_timeout 1s
			keepalive 1h
			keepalive_idle_conns {{.IdleConns}}
			keepalive_idle_conns_per_host 512`

const staticConfig = `{
	admin 127.0.0.1:{{.Admin}}
	auto_https off
}
http://{{.Address}} {
	reverse_proxy {header.X-Target}{{if .DeadAddrs}} {header.X-Second}{{end}} {` + stockTransport + `{{if .CA}}
			tls
			tls_server_name static.test
			tls_trust_pool file {{.CA}}{{end}}
		}{{if .CA}}
		header_up Host static.test:{{.Backend}}{{end}}
	}
}
`

const dynamicConfig = `{
	admin 127.0.0.1:{{.Admin}}
	auto_https off
}
http://{{.Address}} {
	reverse_proxy {
		dynamic a {
			name {header.X-Target}
			port {{.Backend}}
			refresh {{.TTL}}
			resolvers {{.Nameserver}}
			versions ipv4
		}
		header_up Host {header.X-Target}:{{.Backend}}` + stockTransport + `{{if .CA}}
			tls
			tls_server_name {header.X-Target}
			tls_trust_pool file {{.CA}}{{end}}
		}
	}
}
`

// haproxyConfig: as many as its idle connections are three quarters of the descriptors.
const haproxyConfig = `global
	nbthread {{.CPUs}}
	maxconn {{.Divide .MaxOpen 3}}
	fd-hard-limit {{.MaxOpen}}
	tune.pool-high-fd-ratio 75
	tune.pool-low-fd-ratio 70

resolvers lab
	nameserver lab {{.Nameserver}}
	accepted_payload_size 1232
	resolve_retries 2
	timeout resolve 1s
	timeout retry 500ms
	hold valid {{.TTL.Milliseconds}}ms
	hold nx 1s
	hold timeout 1s
	hold refused 1s
	hold other 1s

defaults
	mode http
	timeout client 1h
	timeout http-keep-alive 1h
	timeout connect 1s
	timeout server 10s
	retries 1
	option forwardfor
	http-reuse always

listen gateway
	bind {{.Address}}
	http-request set-var(txn.name) req.hdr(x-target)
	http-request do-resolve(txn.addr,lab,ipv4) var(txn.name)
	http-request return status 502 unless { var(txn.addr) -m found }
	http-request set-dst var(txn.addr)
	http-request set-dst-port int({{.Backend}})
	http-request set-header Host %[var(txn.name)]:{{.Backend}}
	server any 0.0.0.0:0 pool-max-conn -1 pool-low-conn {{.IdleConns}} pool-purge-delay 1h{{if .CA}} ssl verify required ca-file {{.CA}} sni var(txn.name){{if eq .Scheme "h2"}} alpn h2{{end}}{{end}}
`

// nginxConfig: each of the workers may hold a share of the idle connections.
const nginxConfig = `load_module /usr/lib/nginx/modules/ndk_http_module.so;
load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;
user root; # as the others
daemon off;
pid nginx.pid;
error_log error.log crit;
worker_processes {{.CPUs}};
worker_rlimit_nofile {{.MaxOpen}};
events {
	worker_connections {{.MaxOpen}};
	accept_mutex on;
}
http {
	access_log off;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	lua_package_path "$prefix/?.lua;/usr/share/lua/5.1/?.lua;;";
	lua_shared_dict names 128m;
	lua_max_running_timers 8192;
	lua_max_pending_timers 16384;
	init_by_lua_block { require "target" }

	upstream entrance {
		server 0.0.0.1;
		balancer_by_lua_block { require("target").balance({{.Backend}}) }
		keepalive {{.Divide .IdleConns .CPUs}};
		keepalive_requests 1000000000;
		keepalive_timeout 1h;
	}
	server {
		listen {{.Address}} backlog=4096;
		keepalive_requests 1000000000;
		keepalive_timeout 1h;
		location / {
			access_by_lua_block { require("target").resolve("{{.Nameserver.Addr}}", {{.Nameserver.Port}}) }
			proxy_pass {{if .CA}}https{{else}}http{{end}}://entrance;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $http_x_target:{{.Backend}};
			proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
			proxy_connect_timeout 1s;
			proxy_read_timeout 10s;
			proxy_next_upstream error timeout;{{if .CA}}
			proxy_ssl_server_name on;
			proxy_ssl_name $http_x_target;
			proxy_ssl_verify on;
			proxy_ssl_trusted_certificate {{.CA}};{{end}}
		}
	}
}
`

// nginxLua resolves and balances as the recipe does that caddytarget replaces, without
// the recipe's faults where a few lines are enough.
const nginxLua = `require "resty.core"
local balancer = require "ngx.balancer"
local resolver = require "nginx.dns.resolver"
local names = ngx.shared.names
local M = {}

-- keep keeps addresses, or none, for some seconds. They stay there as stale ones after
-- that: an entry that expires is removed as soon as there is a new one.
local function keep(name, addresses, seconds)
	names:set(name, ngx.now() + seconds .. " " .. addresses)
	return addresses
end

-- ask asks the nameserver for a name. What it cannot find it does not ask for again
-- within a second; known addresses serve meanwhile.
local function ask(name, host, port, known)
	local r = resolver:new{ nameservers = { { host, port } }, retrans = 2, timeout = 500 }
	local list, ttl = {}, 3600
	for _, a in ipairs(r and r:query(name, { qtype = r.TYPE_A }) or {}) do
		if a.address then
			list[#list + 1] = a.address
			ttl = math.min(ttl, a.ttl)
		end
	end
	if #list == 0 then
		return keep(name, known, 1)
	end
	return keep(name, table.concat(list, " "), math.max(ttl, 1))
end

local function renew(_, ...) ask(...) end

function M.resolve(host, port)
	local name = ngx.var.http_x_target
	local expires, value = (names:get(name) or "0 "):match("^(%S+) (.*)$")
	if tonumber(expires) < ngx.now() then
		if value == "" then
			value = ask(name, host, port, value)
		elseif names:add("renewing " .. name, true, 2) then
			ngx.timer.at(0, renew, name, host, port, value)
		end
	end
	if value == "" then
		return ngx.exit(502)
	end
	-- addresses that failed within 10 seconds come last
	local list, dead = {}, {}
	for address in value:gmatch("%S+") do
		local to = names:get("dead " .. address) and dead or list
		table.insert(to, math.random(#to + 1), address)
	end
	for _, address in ipairs(dead) do list[#list + 1] = address end
	ngx.ctx.addresses, ngx.ctx.try = list, 0
end

function M.balance(port)
	local ctx = ngx.ctx
	if ctx.try == 0 then
		balancer.set_more_tries(1)
	else
		names:set("dead " .. ctx.addresses[(ctx.try - 1) % #ctx.addresses + 1], true, 10)
	end
	ctx.try = ctx.try + 1
	local ok, err = balancer.set_current_peer(ctx.addresses[(ctx.try - 1) % #ctx.addresses + 1], port)
	if not ok then
		ngx.log(ngx.ERR, err)
		return ngx.exit(500)
	end
end

return M
`
