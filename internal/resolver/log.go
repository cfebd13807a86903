package resolver

import (
	"github.com/miekg/dns"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"caddytarget/internal/dnsclient"
)

func (r *Resolver) logger() *zap.Logger {
	if r.config.Logger == nil {
		return zap.NewNop()
	}
	return r.config.Logger()
}

// logHealth logs that a nameserver went down, and why; or, without a reason, that it
// came up again.
func (r *Resolver) logHealth(server dnsclient.Nameserver, why string) {
	if why == "" {
		r.logger().Info("nameserver is up again", zap.Stringer("nameserver", server))
		return
	}
	r.logger().Warn("nameserver is down", zap.Stringer("nameserver", server), zap.String("reason", why))
}

// logPreload logs that a name of Config.Preload cannot be resolved, and why; or, without
// a reason, that it can be again.
func (r *Resolver) logPreload(name string, reason error) {
	if reason == nil {
		r.logger().Info("preloaded name can be resolved again", zap.String("name", name))
		return
	}
	r.logger().Warn("preloaded name cannot be resolved", zap.String("name", name), zap.String("reason", reason.Error()))
}

// traces reports whether lookups are logged now, or observed.
func (r *Resolver) traces() bool {
	return r.observers.any() || r.logger().Core().Enabled(zap.DebugLevel)
}

// trace logs a lookup, and has it observed.
func (r *Resolver) trace(t *dnsclient.Trace) {
	r.observers.lookup(t)
	c := r.logger().Check(zap.DebugLevel, "lookup")
	if c == nil {
		return
	}
	answer := zap.Stringers("addresses", t.Addrs)
	if t.Type == dns.TypeSRV {
		answer = zap.Any("services", t.Services)
	}
	c.Write(
		zap.String("name", t.Name),
		zap.Stringer("type", dns.Type(t.Type)),
		zap.Duration("duration", t.Duration),
		zap.Error(t.Err),
		answer,
		zap.Duration("ttl", t.TTL),
		zap.Array("tries", tries(t.Tries)),
	)
}

// tries are the tries of a lookup, for a log.
type tries []dnsclient.Try

// MarshalLogArray implements zapcore.ArrayMarshaler.
func (t tries) MarshalLogArray(to zapcore.ArrayEncoder) error {
	for _, try := range t {
		err := to.AppendObject(zapcore.ObjectMarshalerFunc(func(to zapcore.ObjectEncoder) error {
			to.AddString("name", try.Name)
			to.AddString("server", try.Server.String())
			to.AddString("transport", try.Transport)
			to.AddDuration("duration", try.Duration)
			to.AddString("outcome", try.Outcome)
			if try.Ignored > 0 {
				to.AddInt("ignored", try.Ignored)
			}
			return nil
		}))
		if err != nil {
			return err
		}
	}
	return nil
}

// Interface guards
var _ zapcore.ArrayMarshaler = (tries)(nil)
