package explain

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Rows returns the report for people: lines of two columns.
func (r *Report) Rows() [][]string {
	var t table
	t.add("site", "%s", r.Site)
	if r.Target != nil {
		t.add("target", "%s", r.Target.line(r.Method))
	}
	for i := range r.Rules {
		t.add("rule", "%s", r.Rules[i].line())
	}
	if r.InFlight != nil {
		t.add("in flight", "%d of at most %d requests", r.InFlight.Requests, r.InFlight.Max)
	}
	if r.Lookup != nil {
		r.Lookup.lines(&t)
	}
	for _, a := range r.Found {
		t.add("address", "%s", a.line())
		for i := range a.Causes {
			t.add("  cause", "%s", a.Causes[i].line())
		}
	}
	if r.Dial != nil {
		t.add("dial", "%s", r.Dial.line())
	}
	if r.Connect != nil {
		r.Connect.lines(&t)
	}
	t.add("result", "%s", r.Outcome.line())
	return t
}

// table is rows of two columns.
type table [][]string

func (t *table) add(key, format string, args ...any) {
	*t = append(*t, []string{key, fmt.Sprintf(format, args...)})
}

func (t *Target) line(method string) string {
	host := t.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	line := fmt.Sprintf("%s %s://%s port %d %s, Host %s", method, t.Scheme, host, t.Port, t.URI, t.HostHeader)
	if t.Timeout > 0 {
		line += ", timeout " + Shortly(t.Timeout)
	}
	return line
}

func (r *Rule) line() string { return r.Check + " " + r.Value + ": " + allowed(r.Rule, r.OnlyReported) }

// allowed describes the outcome of a check.
func allowed(rule string, onlyReported bool) string {
	switch {
	case rule == "":
		return "allowed"
	case onlyReported:
		return "allowed, and reported: " + rule
	}
	return "refused: " + rule
}

func (l *Lookup) lines(t *table) {
	line := l.From + ", took " + Shortly(l.Seconds)
	if l.Found != "" {
		line += ", short for " + l.Found
	}
	t.add("lookup", "%s (resolver %s)", line, l.Resolver)
	for _, n := range l.Names {
		state := "not asked for"
		if n.State != "" {
			state = n.State + ", TTL " + Shortly(n.TTL)
		}
		t.add("  name", "%s: %s (zone %s)", n.Name, state, n.Zone)
	}
	for _, q := range l.Queries {
		line := fmt.Sprintf("%s %s, %s to %s: %s after %s", strings.TrimSuffix(q.Name, "."), q.Type, q.Transport, q.Nameserver, q.Outcome, Shortly(q.Seconds))
		if q.Ignored > 0 {
			line += fmt.Sprintf(", %d messages ignored", q.Ignored)
		}
		if l.Earlier {
			line += " (earlier)"
		}
		t.add("  query", "%s", line)
	}
	if l.Error != "" {
		t.add("  error", "%s", l.Error)
	}
}

func (a *Address) line() string {
	line := a.Address.String() + ": " + allowed(a.Rule, a.OnlyReported)
	if a.State != "" {
		line += ", " + strings.ReplaceAll(a.State, "_", " ")
	}
	if a.Offered > 0 {
		line += ", offered as number " + strconv.Itoa(a.Offered)
	}
	if c := a.Connections; c != nil {
		line += fmt.Sprintf(", connections: %d open, %d idle", c.Open, c.Idle)
		if c.HTTP2 > 0 {
			line += fmt.Sprintf(", %d of HTTP/2", c.HTTP2)
		}
		if c.Dials+c.Waiting > 0 {
			line += fmt.Sprintf(", %d dials, %d requests waiting", c.Dials, c.Waiting)
		}
	}
	return line
}

func (c *Cause) line() string {
	what := map[string]string{
		"address": "failures of the address, for all targets: %d in a row",
		"target":  "failures of the address, for this target: %d in a row",
		"limit":   "failures of the address, for this target and limit: %d in a row",
		"family":  "networks of this address family that could not be reached: %d",
	}[c.Of]
	line := fmt.Sprintf(what, c.Failures)
	if c.Limit != "" {
		line += " under the limit " + c.Limit
	}
	line += fmt.Sprintf(" (ejected after %d)", c.Max)
	if c.Age > 0 {
		line += ", the last " + Shortly(c.Age) + " ago"
	}
	if c.Failure != "" {
		line += " (" + c.Failure + ": " + c.Error + ")"
	}
	if c.Left > 0 {
		line += ", ejected for " + Shortly(c.Left)
	}
	if c.Dialling > 0 {
		line += ", a dial goes on for at most " + Shortly(c.Dialling)
	}
	return line
}

func (d *Dial) line() string {
	line := d.Address
	if d.Of > 1 {
		line += fmt.Sprintf(" or another of %d that are offered", d.Of)
	}
	line += map[string]string{"new": ", a new connection", "open": ", a connection that is open"}[d.Connection] + ", " + d.Protocol
	if d.ServerName != "" {
		line += " for " + d.ServerName
	}
	return line
}

func (c *Connect) lines(t *table) {
	line := c.Address + ": connect " + Shortly(c.Connect)
	if c.Handshake > 0 {
		line += ", TLS handshake " + Shortly(c.Handshake)
	}
	if c.TLS != "" {
		line += ", " + c.TLS
	}
	if c.ALPN != "" {
		line += ", " + c.ALPN
	}
	if c.ClientCertificate {
		line += ", the backend asks for a client certificate"
	}
	t.add("connect", "%s", line)
	for _, n := range c.Certificates {
		whose := n.Subject // may be empty where there are names; authorities have no names
		if len(n.Names) > 0 {
			whose = strings.TrimSpace(whose + " for " + strings.Join(n.Names, " "))
		}
		t.add("  certificate", "%s, until %s, by %s", whose, n.Until.Format(time.RFC3339), n.Issuer)
	}
	if c.Error != "" {
		t.add("  error", "%s", c.Error)
	}
}

func (o *Outcome) line() string {
	if o.WouldSend {
		return "the request would be sent"
	}
	line := fmt.Sprintf("status %d, %s in phase %s", o.Status, o.Failure, o.Phase)
	if o.Rule != "" {
		line += ", rule " + o.Rule
	}
	return line + ": " + o.Error
}

// Shortly returns a time in seconds for people, in ASCII.
func Shortly(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d.Abs() >= time.Minute:
		return d.Round(time.Second).String()
	case d.Abs() >= time.Second || d == 0:
		return d.Round(100 * time.Millisecond).String()
	default:
		return strconv.FormatFloat(seconds*1000, 'f', 2, 64) + "ms"
	}
}
