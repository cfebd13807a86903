// Package ejection counts and logs that addresses are ejected, and that this ends. Its [Log]
// is the observer of a health.Tracker. A flood of ejections is counted, but not all of it is
// logged.
package ejection

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"caddytarget/internal/failure"
	"caddytarget/internal/health"
)

// Log counts and logs ejections of addresses.
type Log struct {
	total        *prometheus.CounterVec // by phase and error
	begun, ended failure.Limiter        // of the lines: by the token of the reason, and by the end

	mu   sync.Mutex
	logs []*zap.Logger // the last one is used
}

// New returns a Log without a logger that counts by phase and error.
func New(total *prometheus.CounterVec) *Log { return &Log{total: total} }

// phaseUnreachable and tokenUnreachable are the labels of the ejection of a family.
const (
	phaseUnreachable = failure.Connect
	tokenUnreachable = failure.DestinationIPUnroutable
)

// Use makes a logger the one to use, until release is called or another one is to be used.
func (l *Log) Use(log *zap.Logger) (release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.logs = append(l.logs, log)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		i := slices.Index(l.logs, log)
		l.logs = slices.Delete(l.logs, i, i+1)
	}
}

// check returns an entry of the log, or nil.
func (l *Log) check(message string) *zapcore.CheckedEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.logs) == 0 {
		return nil
	}
	return l.logs[len(l.logs)-1].Check(zapcore.InfoLevel, message)
}

// Reason implements health.Observer.
func (*Log) Reason(err error) health.Reason {
	f, text := failure.OfAddress(err)
	return health.Reason{Phase: string(f.Phase), Token: string(f.Token), Text: text}
}

// Ejected implements health.Observer.
func (l *Log) Ejected(of *health.Ejection) {
	reason := of.Reason
	if of.Family != 0 {
		reason = health.Reason{
			Phase: string(phaseUnreachable), Token: string(tokenUnreachable),
			Text: fmt.Sprintf("no address could be reached in %d networks", of.Failures),
		}
	}
	l.total.WithLabelValues(reason.Phase, reason.Token).Inc()
	suppressed, ok := l.begun.Allow(failure.Token(reason.Token), time.Now())
	if !ok {
		return
	}
	if ce := l.check("address ejected"); ce != nil {
		ce.Write(append(ejectedFields(of, suppressed), zap.String("phase", reason.Phase), zap.String("failure", reason.Token),
			zap.String("error", reason.Text), zap.Int("failures", of.Failures), zap.Duration("for", of.For))...)
	}
}

// Ended implements health.Observer.
func (l *Log) Ended(of *health.Ejection) {
	suppressed, ok := l.ended.Allow(failure.Token(of.End), time.Now())
	if !ok {
		return
	}
	if ce := l.check("ejection ended"); ce != nil {
		ce.Write(append(ejectedFields(of, suppressed), zap.String("end", string(of.End)), zap.Duration("lasted", of.Lasted))...)
	}
}

// ejectedFields returns what was ejected.
func ejectedFields(of *health.Ejection, suppressed int) (list []zap.Field) {
	if of.Family != 0 {
		list = append(list, zap.String("family", fmt.Sprintf("ipv%d", of.Family)))
	} else {
		list = append(list, zap.Stringer("address", of.Addr))
	}
	if of.Target != "" {
		list = append(list, zap.String("name", of.Target))
	}
	if of.Limit != "" {
		list = append(list, zap.String("limit", string(of.Limit)))
	}
	if suppressed > 0 {
		list = append(list, zap.Int("suppressed", suppressed))
	}
	return list
}

// Interface guards
var _ health.Observer = (*Log)(nil)
