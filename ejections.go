package caddytarget

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

// ejections counts and logs ejections of addresses. It outlives a reload.
type ejections struct {
	total        *prometheus.CounterVec // by phase and error
	begun, ended failure.Limiter        // of the lines: by the token of the reason, and by the end

	mu   sync.Mutex
	logs []*zap.Logger // of the configurations that are running; the last one is used
}

// phaseUnreachable and tokenUnreachable are the labels of the ejection of a family.
const (
	phaseUnreachable = failure.Connect
	tokenUnreachable = failure.DestinationIPUnroutable
)

// logTo makes a logger the one to use, until release is called.
func (e *ejections) logTo(log *zap.Logger) (release func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.logs = append(e.logs, log)
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		i := slices.Index(e.logs, log)
		e.logs = slices.Delete(e.logs, i, i+1)
	}
}

// check returns an entry of the log, or nil.
func (e *ejections) check(message string) *zapcore.CheckedEntry {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.logs) == 0 {
		return nil
	}
	return e.logs[len(e.logs)-1].Check(zapcore.InfoLevel, message)
}

// Reason implements health.Observer.
func (*ejections) Reason(err error) health.Reason {
	f, text := failure.OfAddress(err)
	return health.Reason{Phase: string(f.Phase), Token: string(f.Token), Text: text}
}

// Ejected implements health.Observer.
func (e *ejections) Ejected(of *health.Ejection) {
	reason := of.Reason
	if of.Family != 0 {
		reason = health.Reason{
			Phase: string(phaseUnreachable), Token: string(tokenUnreachable),
			Text: fmt.Sprintf("no address could be reached in %d networks", of.Failures),
		}
	}
	e.total.WithLabelValues(reason.Phase, reason.Token).Inc()
	suppressed, ok := e.begun.Allow(failure.Token(reason.Token), time.Now())
	if !ok {
		return
	}
	if ce := e.check("address ejected"); ce != nil {
		ce.Write(append(ejectedFields(of, suppressed), zap.String("phase", reason.Phase), zap.String("failure", reason.Token),
			zap.String("error", reason.Text), zap.Int("failures", of.Failures), zap.Duration("for", of.For))...)
	}
}

// Ended implements health.Observer.
func (e *ejections) Ended(of *health.Ejection) {
	suppressed, ok := e.ended.Allow(failure.Token(of.End), time.Now())
	if !ok {
		return
	}
	if ce := e.check("ejection ended"); ce != nil {
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
var _ health.Observer = (*ejections)(nil)
