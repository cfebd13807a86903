package record

import (
	"errors"
	"net/netip"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"caddytarget/internal/failure"
	"caddytarget/internal/guard"
)

// FailureLog logs requests that failed: at the level debug all of them, else as many as its
// limiter allows.
type FailureLog struct {
	Log   *zap.Logger
	Level zapcore.Level

	limiter failure.Limiter
}

// Failed logs a request that failed with an error. dialled is the address of the last
// attempt, if it is valid.
func (l *FailureLog) Failed(o *Outcome, err error, dialled netip.AddrPort) {
	ce := l.Log.Check(l.Level, FailedMessage(o.Failure))
	if ce == nil {
		return
	}
	suppressed, ok := 0, true
	if l.Level > zapcore.DebugLevel {
		suppressed, ok = l.limiter.Allow(o.Failure.Token, time.Now())
	}
	if !ok {
		return
	}
	list := append(FailureFields(o.Caller, err, o.Failure), zap.Int("attempts", o.Attempts))
	if o.Status != 0 {
		list = append(list, zap.Int("status", o.Status))
	}
	if dialled.IsValid() {
		list = append(list, zap.Stringer("dialled", dialled))
	}
	if suppressed > 0 {
		list = append(list, zap.Int("suppressed", suppressed))
	}
	ce.Write(list...)
}

// FailedMessage returns the message of the log for a failure.
func FailedMessage(f failure.Failure) string {
	switch {
	case f.Rule != "":
		return "target refused"
	case f.Phase == failure.DNS:
		return "target not resolved"
	}
	return "target failed"
}

// FailureFields describes a request that failed, for the log: without the path and the
// query, which may hold secrets. by may be nil.
func FailureFields(by Caller, err error, f failure.Failure) []zap.Field {
	list := []zap.Field{zap.Error(err)}
	if f.Token != "" {
		list = append(list, zap.String("phase", string(f.Phase)), zap.String("failure", string(f.Token)))
		if f.Rule != "" {
			list = append(list, zap.String("rule", f.Rule))
		}
	}
	if by != nil {
		c := by.Recorded()
		list = append(list, zap.String("scheme", c.Scheme), zap.String("name", c.Host), zap.Uint16("port", c.Port))
		if c.Remote != "" {
			list = append(list, zap.String("host", c.Site), zap.String("remote", c.Remote))
		}
	}
	if r, ok := errors.AsType[*guard.Refusal](err); ok && r.Kind == guard.KindAddress {
		list = append(list, zap.String("address", r.Value))
	}
	return list
}
