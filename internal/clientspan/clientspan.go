// Package clientspan makes spans of OpenTelemetry of the attempts of a request: one span
// of the kind CLIENT each, below the span that the context of the request has. Provider
// and sampling are those of that span. Names and attributes are those of OpenTelemetry's
// semantic conventions for HTTP clients. No attribute has a query or what identifies a
// user.
//
// Children of such a span are the DNS lookup, the connection and the TLS handshake, each
// only if it happened for the attempt.
package clientspan

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/contrib/propagators/autoprop"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	oteltrace "go.opentelemetry.io/otel/trace"

	"caddytarget/internal/pool"
	"caddytarget/internal/trace"
)

// scope is the name of the instrumentation scope.
const scope = "caddytarget"

// Recorded reports whether the context of a request has a span that is recorded. Without
// one it allocates nothing.
func Recorded(ctx context.Context) bool { return oteltrace.SpanFromContext(ctx).IsRecording() }

// Span is the span of one attempt.
type Span struct {
	tracer oteltrace.Tracer
	parent context.Context
	ctx    context.Context
	span   oteltrace.Span
}

// Start begins the span of an entry, below that of a context. resends is how many
// attempts at the request there were before. The span begins with the entry's lookup.
func Start(parent context.Context, e *trace.Entry, resends int) *Span {
	s := &Span{tracer: oteltrace.SpanFromContext(parent).TracerProvider().Tracer(scope), parent: parent}
	name, method := methodOf(e.Method)
	attributes := append(method,
		semconv.ServerAddress(e.Target.Host),
		semconv.ServerPort(int(e.Target.Port)),
	)
	if e.Target.Scheme != "" {
		attributes = append(attributes, semconv.URLFull(e.Target.String()))
	}
	if e.Address.IsValid() {
		attributes = append(attributes,
			semconv.NetworkPeerAddress(e.Address.Addr().String()), semconv.NetworkPeerPort(int(e.Address.Port())))
	}
	if resends > 0 {
		attributes = append(attributes, semconv.HTTPRequestResendCount(resends))
	}
	s.ctx, s.span = s.tracer.Start(parent, name,
		oteltrace.WithSpanKind(oteltrace.SpanKindClient), oteltrace.WithTimestamp(e.Start()), oteltrace.WithAttributes(attributes...))
	s.child("DNS lookup", e.Lookup.Step, semconv.DNSQuestionName(e.Target.Host))
	return s
}

// methods are those that the conventions know.
var methods = []string{
	http.MethodConnect, http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodOptions,
	http.MethodPatch, http.MethodPost, http.MethodPut, http.MethodTrace, "QUERY",
}

// methodOf returns the name of the span for a method, and its attributes.
func methodOf(method string) (name string, attributes []attribute.KeyValue) {
	if slices.Contains(methods, method) {
		return method, []attribute.KeyValue{semconv.HTTPRequestMethodKey.String(method)}
	}
	return "HTTP", []attribute.KeyValue{semconv.HTTPRequestMethodOther, semconv.HTTPRequestMethodOriginal(method)}
}

// child makes the span of a step, if that happened.
func (s *Span) child(name string, step pool.Step, attributes ...attribute.KeyValue) {
	if !step.Happened() {
		return
	}
	_, span := s.tracer.Start(s.ctx, name, oteltrace.WithTimestamp(step.Begin), oteltrace.WithAttributes(attributes...))
	span.End(oteltrace.WithTimestamp(step.End))
}

// End ends the span, with what is known of the entry at its end.
func (s *Span) End(e *trace.Entry) {
	s.child("connect", e.Timing.Steps[pool.Connect])
	s.child("TLS handshake", e.Timing.Steps[pool.Handshake])
	if e.Timing.Steps[pool.Send].Happened() {
		version := "1.1"
		if e.Timing.HTTP2 {
			version = "2"
		}
		s.span.SetAttributes(semconv.NetworkProtocolVersion(version))
	}
	if e.Status != 0 {
		s.span.SetAttributes(semconv.HTTPResponseStatusCode(e.Status))
	}
	switch {
	case e.Failure.Token != "":
		s.span.SetAttributes(semconv.ErrorTypeKey.String(string(e.Failure.Token)))
		s.span.SetStatus(codes.Error, string(e.Failure.Phase))
	case e.Err != nil:
		s.span.SetAttributes(semconv.ErrorTypeOther)
		s.span.SetStatus(codes.Error, "")
	case e.Status >= http.StatusBadRequest:
		s.span.SetAttributes(semconv.ErrorTypeKey.String(strconv.Itoa(e.Status)))
		s.span.SetStatus(codes.Error, "")
	}
	ended := e.Ended
	if ended.IsZero() {
		ended = time.Now()
	}
	s.span.End(oteltrace.WithTimestamp(ended))
}

// propagators are those of the environment, as Caddy's handler tracing has them.
var propagators = sync.OnceValue(func() propagation.TextMapPropagator { return autoprop.NewTextMapPropagator() })

// Header returns the header of the request as it is to be sent: fields that name the span
// above this one, such as traceparent, name this span instead. Fields that something
// else has set or deleted stay as they are. The header itself is not changed.
func (s *Span) Header(header http.Header) http.Header {
	above, own := make(http.Header), make(http.Header)
	propagators().Inject(s.parent, propagation.HeaderCarrier(above))
	propagators().Inject(s.ctx, propagation.HeaderCarrier(own))
	var changed http.Header
	for name, values := range own {
		if !slices.Equal(above[name], header[name]) || slices.Equal(values, above[name]) {
			continue
		}
		if changed == nil {
			changed = maps.Clone(header)
		}
		changed[name] = values
	}
	if changed == nil {
		return header
	}
	return changed
}
