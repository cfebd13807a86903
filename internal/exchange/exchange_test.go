package exchange

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
	"unsafe"

	"caddytarget/internal/failover"
	"caddytarget/internal/failure"
	"caddytarget/internal/guard"
	"caddytarget/internal/health"
	"caddytarget/internal/outgoing"
	"caddytarget/internal/pool"
	"caddytarget/internal/targeturl"
)

// newCall returns the call of a target at 192.0.2.1, in an exchange of a request.
func newCall(t testing.TB, r *http.Request) (*Call, *Exchange) {
	t.Helper()
	u, err := targeturl.Parse("https://a.example:8443/x?y")
	if err != nil {
		t.Fatal(err)
	}
	st := new(State)
	c := &Call{State: st, Client: ClientOf(r)}
	c.SetURL(u)
	c.Addrs, c.Preferred = []netip.Addr{netip.MustParseAddr("192.0.2.1")}, 1
	st.Call = c
	x := st.Enter(r)
	c.Join(x)
	return c, x
}

// newAttempt returns an attempt at the call of newCall that is ready to be sent.
func newAttempt(t testing.TB, via *Transport, r *http.Request) *Attempt {
	t.Helper()
	c, x := newCall(t, r)
	via.Health = health.New()
	a := NewAttempt(via, c, x)
	a.SetOrder("tcp", "192.0.2.1:8443", c.Scheme, r.Header)
	if err := a.TakeBody(r); err != nil {
		t.Fatal(err)
	}
	a.SetOut(r, outgoing.Changes{Scheme: "https", Address: "192.0.2.1:8443"})
	return a
}

// TestPlaceholders has their values, before a target was read, when it was, and when the
// request has failed.
func TestPlaceholders(t *testing.T) {
	st := new(State)
	want := func(name string, value any) {
		t.Helper()
		if got, ok := st.Placeholder("http.target." + name); !ok || got != value {
			t.Errorf("%s: got %v, %t, want %v", name, got, ok, value)
		}
	}
	for _, name := range []string{"url", "scheme", "host", "port", "hostport", "addresses", "address", "error", "failure", "phase", "rule", "not_followed", "lookup"} {
		want(name, "")
	}
	for _, key := range []string{"http.target.", "http.target.other", "http.request.host"} {
		if got, ok := st.Placeholder(key); ok {
			t.Errorf("%s: got %v, want none", key, got)
		}
	}
	c, _ := newCall(t, httptest.NewRequest(http.MethodGet, "/", nil))
	st = c.State
	st.Attempts, st.Address = 2, netip.MustParseAddrPort("192.0.2.1:8443")
	for name, value := range map[string]any{
		"url": "https://a.example:8443/x?y", "scheme": "https", "host": "a.example", "port": uint16(8443), "hostport": "a.example:8443",
		"addresses": "192.0.2.1", "address": "192.0.2.1:8443", "attempts": 2, "reused": false, "redirects": 0, "lookup_ms": 0.0,
	} {
		want(name, value)
	}
	st.Err = errors.New(`a "quote"`)
	want("error", "a.example: a 'quote'")
	st.Err = &guard.Refusal{Kind: guard.KindName, Value: "a.example", Rule: guard.RuleDeny}
	want("rule", "deny")
	want("phase", "policy")
	if last, returned := st.Begin(); last != c || returned {
		t.Errorf("the handler that begins gets %v, %t, want the call before", last, returned)
	}
	want("error", "")
	want("host", "")
}

// TestExchanges: the attempts at one request that a reverse_proxy makes share an exchange,
// another request has another one.
func TestExchanges(t *testing.T) {
	st := new(State)
	if st.Exchange() != nil {
		t.Error("there is an exchange before any")
	}
	first := st.Current()
	one, two := httptest.NewRequest(http.MethodGet, "/", nil), httptest.NewRequest(http.MethodGet, "/", nil)
	if st.HasEntered(one) || st.Enter(one) != first || !st.HasEntered(one) || st.Enter(one) != first {
		t.Error("the first request has another exchange than the current one")
	}
	second := st.Enter(two)
	if second == first || st.Exchange() != second || st.HasEntered(one) {
		t.Error("the second request has the exchange of the first")
	}

	ctx := &Context{Context: t.Context()}
	r := one.WithContext(context.WithValue(ctx, t, nil))
	if CallIn(second, one) != nil || CallOf(r.Context()) != &ctx.Call {
		t.Error("a request has the wrong call")
	}
	if c := CallIn(second, r); c != &ctx.Call || c.Exchange == nil || c.Exchange == second {
		t.Errorf("got %p in %p, want %p in an exchange of its own", c, c.Exchange, &ctx.Call)
	}
	third := st.Enter(r)
	if c := CallIn(third, r); c.Exchange != third {
		t.Error("the call of the request that an exchange is of has another one")
	}
}

// TestFailed checks the error of an attempt that failed.
func TestFailed(t *testing.T) {
	refusal := &guard.Refusal{Kind: guard.KindAddress, Value: "192.0.2.1", Rule: guard.RulePrivate}
	for _, test := range []struct {
		name   string
		method string
		err    pool.Error
		status int  // of Refused; 0: it is none
		unsent bool // it may be tried elsewhere
	}{
		{"not connected", http.MethodPost, pool.Error{Phase: pool.Connect, Err: io.EOF}, 0, true},
		{"nothing sent", http.MethodGet, pool.Error{Phase: pool.Send, Sent: pool.Nothing, Err: io.EOF}, 0, true},
		{"sent", http.MethodGet, pool.Error{Phase: pool.Response, Sent: pool.All, Err: io.EOF}, 0, false},
		{"cannot be sent", http.MethodGet, pool.Error{Phase: pool.Prepare, Err: io.EOF}, 0, false},
		{"refused", http.MethodGet, pool.Error{Phase: pool.Connect, Err: refusal}, http.StatusForbidden, false},
		{"too many", http.MethodGet, pool.Error{Phase: pool.Connect, Err: pool.ErrLimit}, http.StatusServiceUnavailable, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := newAttempt(t, new(Transport), httptest.NewRequest(test.method, "/", nil))
			err := a.Failed(&test.err)
			status := 0
			if e, ok := err.(*Refused); ok {
				status, err = e.Status, e.Err
			}
			_, unsent := err.(Unsent)
			if status != test.status || unsent != test.unsent || !errors.Is(err, test.err.Err) {
				t.Errorf("got status %d, unsent %t, %v, want %d, %t", status, unsent, err, test.status, test.unsent)
			}
			if a.Call.State.Err != err {
				t.Errorf("the request's error is %v, want %v", a.Call.State.Err, err)
			}
			a.End()
		})
	}
}

// TestStalledClient: a request whose client has not sent its body in time has run out of
// time, also if the context has learned only that the client has left.
func TestStalledClient(t *testing.T) {
	for _, test := range []struct {
		wait   time.Duration
		status int
		want   failure.Token
	}{
		{0, failure.StatusClientGone, failure.ClientDisconnected},
		{time.Second, failure.StatusClientGone, failure.ClientDisconnected}, // it left just then
		{time.Second + bodyGrace, http.StatusGatewayTimeout, failure.HTTPResponseTimeout},
	} {
		synctest.Test(t, func(t *testing.T) {
			parent, leave := context.WithCancel(t.Context())
			ctx, stop := context.WithTimeout(parent, time.Second)
			defer stop()
			leave()
			a := newAttempt(t, new(Transport), httptest.NewRequest(http.MethodPost, "/", strings.NewReader("x")).WithContext(ctx))
			a.Call.State.Timeout = time.Second
			time.Sleep(test.wait)
			err := a.Failed(&pool.Error{Phase: pool.Response, Sent: pool.Part, Err: context.Canceled})
			if f := failure.Of(err); f.Token != test.want || failure.StatusOf(err) != test.status {
				t.Errorf("after %s: got %+v, status %d, %v, want %s and %d", test.wait, f, failure.StatusOf(err), err, test.want, test.status)
			}
		})
	}
}

// TestFailedWithBody: a request of which nothing was sent may be tried elsewhere only while
// its body is kept.
func TestFailedWithBody(t *testing.T) {
	for size, want := range map[int]bool{10: true, 100 << 10: false} {
		a := newAttempt(t, new(Transport), httptest.NewRequest(http.MethodPost, "/", strings.NewReader(strings.Repeat("x", size))))
		if _, err := io.Copy(io.Discard, a.Out.Body); err != nil {
			t.Fatal(err)
		}
		err := a.Failed(&pool.Error{Phase: pool.Send, Sent: pool.Nothing, Err: io.EOF})
		if _, unsent := err.(Unsent); unsent != want {
			t.Errorf("%d octets: got %v, unsent %t, want %t", size, err, unsent, want)
		}
	}
}

// TestRefuse has the requests that are not sent at all.
func TestRefuse(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	if err := newAttempt(t, new(Transport), r).Refuse(r); err != nil {
		t.Errorf("GET: got %v, want no error", err)
	}
	ended, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	a := newAttempt(t, new(Transport), r)
	a.Call.State.Timeout = time.Minute
	if err := a.Refuse(r.WithContext(ended)); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(a.Call.State.ErrorText(), "within the timeout of 1m0s, before an address was dialled") {
		t.Errorf("out of time: got %v, recorded as %s", err, a.Call.State.ErrorText())
	}
	r.Method = http.MethodConnect
	a = newAttempt(t, new(Transport), r)
	a.Call.Policy = newPolicy(t, guard.Config{})
	if e, ok := a.Refuse(r).(*Refused); !ok || e.Status != http.StatusBadRequest || failure.RuleOf(a.Call.State.Err) != failure.RuleMalformed {
		t.Errorf("CONNECT: got %v, want status 400", e)
	}
}

// TestCheckAddress: an address that is one of the call's has been checked, another one is
// checked now.
func TestCheckAddress(t *testing.T) {
	for address, want := range map[string]int{"192.0.2.1:8443": 0, "192.0.2.1:80": http.StatusForbidden, "9.9.9.9:8443": 0, "10.0.0.1:8443": http.StatusForbidden} {
		a := newAttempt(t, new(Transport), httptest.NewRequest(http.MethodGet, "/", nil))
		if err := a.CheckAddress(); err != nil {
			t.Errorf("without a policy: %v", err)
		}
		a.Call.Policy = newPolicy(t, guard.Config{})
		a.Order.Key.Addr = netip.MustParseAddrPort(address)
		status := 0
		if e, ok := a.CheckAddress().(*Refused); ok {
			status = e.Status
		}
		if status != want {
			t.Errorf("%s: got status %d, want %d", address, status, want)
		}
	}
}

// response is a response with a body.
func response(status int, body io.Reader) *http.Response {
	return &http.Response{StatusCode: status, Header: make(http.Header), Body: io.NopCloser(body)}
}

// TestWorked: a response ends what was recorded of attempts before it, and counts as a
// failure of the address if its status is unhealthy.
func TestWorked(t *testing.T) {
	for status, want := range map[int]health.State{200: health.Healthy, 429: health.Healthy, 500: health.Ejected, 503: health.Ejected, 404: health.Ejected} {
		answered := 0
		via := &Transport{Answered: func(bool) { answered++ }, UnhealthyStatus: []int{5, 404}}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		a := newAttempt(t, via, r)
		a.Call.State.Err = io.EOF
		a.Begin()
		a.Worked(r, response(status, http.NoBody))
		a.End()
		source := failover.Source{Health: via.Health, MaxFails: 1, EjectFor: time.Minute, Max: 4}
		if got := source.State(&a.Call.Target, a.Call.Addrs[0]); got != want || answered != 1 || a.Call.State.Err != nil || !a.Call.State.Opened {
			t.Errorf("%d: the address is %v, want %v; %d responses, %+v", status, got, want, answered, a.Call.State.Progress)
		}
	}
}

// TestUnhealthyLatency: a response that took too long counts as a failure of the address.
func TestUnhealthyLatency(t *testing.T) {
	via := &Transport{UnhealthyLatency: time.Second}
	for took, want := range map[time.Duration]bool{0: false, 2 * time.Second: true} {
		if err := via.unhealthy(http.StatusOK, time.Now().Add(-took)); (err != nil) != want {
			t.Errorf("%s: got %v, want an error: %t", took, err, want)
		}
	}
}

// TestResponseBody: a body that does not come to its end is a failure of the request.
func TestResponseBody(t *testing.T) {
	for _, test := range []struct {
		body io.Reader
		want failure.Phase // empty: it is complete
	}{
		{strings.NewReader("body"), ""},
		{io.MultiReader(strings.NewReader("bo"), iotest.ErrReader(errors.New("broken"))), failure.Response},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		a := newAttempt(t, &Transport{Answered: func(bool) {}}, r)
		res := response(http.StatusOK, test.body)
		a.Worked(r, res)
		_, _ = io.ReadAll(res.Body)
		if got := a.Call.State.Failure().Phase; got != test.want {
			t.Errorf("got the phase %q, want %q: %v", got, test.want, a.Call.State.Err)
		}
	}
}

// TestSizes: what is allocated for each request is no larger than a size class of Go, less the
// 8 octets that it adds to those above 512.
func TestSizes(t *testing.T) {
	for what, size := range map[string][2]uintptr{
		"an attempt": {unsafe.Sizeof(Attempt{}), 768 - 8},
		"a context":  {unsafe.Sizeof(Context{}), 448},
		"a state":    {unsafe.Sizeof(State{}), 288}, // the root adds 32, to 320
	} {
		if size[0] > size[1] {
			t.Errorf("%s has %d octets, want at most %d", what, size[0], size[1])
		}
	}
}
