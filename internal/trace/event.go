package trace

import (
	"fmt"
	"strings"
	"time"

	"caddytarget/internal/failure"
	"caddytarget/internal/pool"
	"caddytarget/internal/targeturl"
)

// Event is a request that has ended. Durations are in seconds; what is zero did not
// happen.
type Event struct {
	Time     time.Time `json:"time"` // at which the request came
	Site     string    `json:"site"` // the Host header of the client
	Method   string    `json:"method"`
	Target   string    `json:"target,omitempty"` // empty: it could not be read
	Attempts []Attempt `json:"attempts"`
	LeftOut  int       `json:"left_out,omitempty"` // attempts before the last one that are not in Attempts
	Status   int       `json:"status,omitempty"`   // 0: none was sent
	Phase    string    `json:"phase,omitempty"`
	Failure  string    `json:"failure,omitempty"` // empty: the request has not failed
	Rule     string    `json:"rule,omitempty"`
	Error    string    `json:"error,omitempty"`
	Seconds  float64   `json:"seconds"` // until the end of the response

	hosts []string // of all targets
}

// Attempt is one attempt of an Event, or a lookup that no attempt followed.
type Attempt struct {
	Target   string  `json:"target,omitempty"`  // if it is another one than that of the event
	Address  string  `json:"address,omitempty"` // empty: a lookup alone
	Reused   bool    `json:"reused"`
	Lookup   string  `json:"lookup,omitempty"` // where the addresses came from; empty: they were known from the attempt before
	DNS      float64 `json:"dns,omitempty"`
	Connect  float64 `json:"connect,omitempty"`
	TLS      float64 `json:"tls,omitempty"`
	Send     float64 `json:"send,omitempty"`
	Response float64 `json:"response,omitempty"` // until its first octet
	Status   int     `json:"status,omitempty"`
	Phase    string  `json:"phase,omitempty"`
	Failure  string  `json:"failure,omitempty"`
	Rule     string  `json:"rule,omitempty"`
	Error    string  `json:"error,omitempty"`
	Seconds  float64 `json:"seconds"`
}

// End returns the event of a request that has ended: with a status, with why it failed
// and with the text of that.
func (r *Request) End(now time.Time, status int, f failure.Failure, text string) *Event {
	e := &Event{
		Time: r.Begun.UTC(), Site: shorten(r.Site, maxSite), Method: shorten(r.Method, maxMethod), Target: r.Target.String(), Attempts: make([]Attempt, len(r.Entries)),
		Status: status, Phase: string(f.Phase), Failure: string(f.Token), Rule: f.Rule, Seconds: seconds(now.Sub(r.Begun)),
		LeftOut: r.leftOut,
		hosts:   []string{r.Target.Host},
	}
	if f.Token != "" {
		e.Error = shorten(text, maxText)
	}
	for i, entry := range r.Entries {
		e.Attempts[i] = entry.attempt()
		if target := entry.Target.String(); target != e.Target {
			e.Attempts[i].Target = target
		}
		if host := entry.Target.Host; host != r.Target.Host {
			e.hosts = append(e.hosts, host)
		}
	}
	return e
}

func (e *Entry) attempt() Attempt {
	steps := &e.Timing.Steps
	return Attempt{
		Address: e.Dialled(), Reused: e.Reused, Lookup: e.Lookup.From,
		DNS: secondsOf(e.Lookup.Step), Connect: secondsOf(steps[pool.Connect]), TLS: secondsOf(steps[pool.Handshake]),
		Send: secondsOf(steps[pool.Send]), Response: secondsOf(steps[pool.Response]),
		Status: e.Status, Phase: string(e.Failure.Phase), Failure: string(e.Failure.Token), Rule: e.Failure.Rule,
		Error: shorten(failure.Text(e.Err), maxText), Seconds: seconds(e.Ended.Sub(e.Start())),
	}
}

// Dialled returns the address of the attempt; empty: none.
func (e *Entry) Dialled() string {
	if e.Address.IsValid() {
		return e.Address.String()
	}
	return e.Dial
}

// The limits, in octets, of what clients and backends choose. Listeners and exporters of
// spans that are slow keep many of these texts. Names of hosts have at most 253 octets.
const (
	maxSite   = 300
	maxMethod = 64
	maxPath   = 2048
	maxText   = 2048
)

// shorten returns a text of at most limit octets, and three dots if it was longer.
func shorten(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "..."
}

// String returns the URL of a target, or the empty string if it could not be read. A very
// long path is shortened.
func (t *Target) String() string {
	if t.Host == "" {
		return ""
	}
	host := targeturl.JoinHostPort(t.Scheme, t.Host, t.Port)
	path := shorten(t.Path, maxPath)
	if t.Scheme == "" {
		return host + path
	}
	return t.Scheme + "://" + host + path
}

func secondsOf(s pool.Step) float64 {
	if !s.Happened() {
		return 0
	}
	return max(seconds(s.Duration()), 1e-6) // it happened
}

// seconds returns a duration in seconds, to the microsecond.
func seconds(d time.Duration) float64 { return d.Round(time.Microsecond).Seconds() }

// Line returns an event in one line for people.
func (e *Event) Line() string {
	var b strings.Builder
	target := e.Target
	if target == "" {
		target = "(no target)"
	}
	fmt.Fprintf(&b, "%s %s %s %s", e.Time.Local().Format("15:04:05.000"), statusText(e.Status), e.Method, target)
	fmt.Fprintf(&b, " %s", milliseconds(e.Seconds))
	for i := range e.Attempts {
		b.WriteString(" | ")
		e.Attempts[i].appendTo(&b)
	}
	switch {
	case e.Failure == "":
	case len(e.Attempts) == 0:
		fmt.Fprintf(&b, " | %s: %s", failureText(e.Phase, e.Failure, e.Rule), e.Error)
	default: // the last attempt may have another word
		fmt.Fprintf(&b, " | %s", e.Error)
		if last := e.Attempts[len(e.Attempts)-1]; last.Failure != e.Failure {
			fmt.Fprintf(&b, " (%s)", e.Failure)
		}
	}
	return b.String()
}

func (a *Attempt) appendTo(b *strings.Builder) {
	if a.Target != "" {
		fmt.Fprintf(b, "%s at ", a.Target)
	}
	switch {
	case a.Address == "":
		b.WriteString("no address")
	case a.Reused:
		fmt.Fprintf(b, "%s reused", a.Address)
	default:
		b.WriteString(a.Address)
	}
	for _, step := range []struct {
		name    string
		seconds float64
	}{{"dns", a.DNS}, {"connect", a.Connect}, {"tls", a.TLS}, {"send", a.Send}, {"response", a.Response}} {
		if step.seconds > 0 {
			fmt.Fprintf(b, " %s %s", step.name, milliseconds(step.seconds))
		}
	}
	if a.Failure != "" {
		fmt.Fprintf(b, " %s", failureText(a.Phase, a.Failure, a.Rule))
	} else if a.Status != 0 {
		fmt.Fprintf(b, " %d", a.Status)
	}
}

func statusText(status int) string {
	if status == 0 {
		return "---"
	}
	return fmt.Sprint(status)
}

func failureText(phase, token, rule string) string {
	if rule != "" {
		return fmt.Sprintf("%s in %s, rule %s", token, phase, rule)
	}
	return fmt.Sprintf("%s in %s", token, phase)
}

func milliseconds(s float64) string { return fmt.Sprintf("%.2fms", s*1000) }
