package exchange

import (
	"net/http"
	"net/netip"
	"slices"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"caddytarget/internal/failure"
	"caddytarget/internal/gate"
	"caddytarget/internal/guard"
	"caddytarget/internal/metrics"
	"caddytarget/internal/record"
)

// Policy applies the rules of a site to its calls: it counts and logs what is refused.
type Policy struct {
	gate.Gate
	Metrics *metrics.Requests
	Log     *zap.Logger
	Quiet   bool // a handler logs the failures of its requests itself
}

// Failed counts a request that was not sent on, and logs it unless the handler does; c
// may be nil.
func (p *Policy) Failed(c *Call, status int, err error) {
	if c.isExplained() {
		return
	}
	f := failure.Of(err)
	if f.Rule != "" {
		p.Metrics.Refused.WithLabelValues(gate.ModeEnforce, f.Rule).Inc()
	}
	if p.Quiet {
		return
	}
	if ce := p.Log.Check(zapcore.DebugLevel, record.FailedMessage(f)); ce != nil {
		ce.Write(append(fields(c, err), zap.Int("status", status))...)
	}
}

// fields describes a request that failed, for the log; c may be nil.
func fields(c *Call, err error) []zap.Field {
	return record.FailureFields(c.caller(), err, failure.Of(err))
}

// Check checks scheme, name and port of a call. A source with a name of its own has no
// scheme.
func (c *Call) Check() error { return c.Policy.CheckTarget(c.Scheme, c.Host, c.Port, c) }

// checkUpstream checks the address that a request is about to be sent to. That has
// been done if it is one of the call's; but others may have been put in.
func (c *Call) checkUpstream(addr netip.AddrPort) error {
	if addr.Port() == c.Port && slices.Contains(c.Addrs, addr.Addr()) {
		return nil
	}
	return c.forbid(c.Policy.CheckUpstream(c.Host, addr, c))
}

// forbid counts and logs a request that must not be sent to an address. If err is nil, it
// may.
func (c *Call) forbid(err error) error {
	if err != nil {
		c.Policy.Failed(c, http.StatusForbidden, err)
	}
	return err
}

// Reported implements gate.Observer.
func (c *Call) Reported(err error) {
	if c.isExplained() {
		return
	}
	c.Policy.Metrics.Refused.WithLabelValues(gate.ModeReport, failure.RuleOf(err)).Inc()
	if ce := c.Policy.Log.Check(zapcore.WarnLevel, "target would be refused"); ce != nil {
		ce.Write(fields(c, err)...)
	}
}

// LeftOut implements gate.Observer.
func (c *Call) LeftOut(r *guard.Refusal, reported bool) {
	if c.isExplained() {
		return
	}
	mode, level, message := gate.ModeEnforce, zapcore.DebugLevel, "address left out"
	if reported {
		mode, level, message = gate.ModeReport, zapcore.WarnLevel, "address would be left out"
	}
	c.Policy.Metrics.LeftOut.WithLabelValues(mode, r.Rule).Inc()
	if ce := c.Policy.Log.Check(level, message); ce != nil {
		ce.Write(fields(c, r)...)
	}
}

// Interface guards
var _ gate.Observer = (*Call)(nil)
