package caddytarget

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"caddytarget/internal/exchange"
	"caddytarget/internal/failure"
	"caddytarget/internal/targeturl"
)

// newCall makes the call of a request from the templates. What was called last, if
// there was anything, is where a Location leads from.
func (h *Handler) newCall(r *http.Request, repl *caddy.Replacer, last *exchange.Call, st *exchange.State) (*exchange.Context, targeturl.URL, error) {
	ctx := &exchange.Context{Context: r.Context()}
	c := &ctx.Call
	u, err := h.parse(r, repl, last, c, st.Explained)
	if err != nil {
		return nil, u, failure.NewMalformed(err)
	}
	return ctx, u, h.admitCall(c, r, st)
}

// admitCall completes the call of a request, and checks its target.
func (h *Handler) admitCall(c *exchange.Call, r *http.Request, st *exchange.State) error {
	c.Limit, c.Retryable = h.limit, exchange.IsRetryable(r.Method)
	c.Measured = h.Timeout != "" && h.limit == ""
	c.Client, c.Strip, c.Policy, c.Resolver = exchange.ClientOf(r), h.strip, h.policy, h.resolver
	st.Call, c.State = c, st
	return c.Check()
}

// parse reads the templates of a request. e is nil unless the request is only explained.
func (h *Handler) parse(r *http.Request, repl *caddy.Replacer, last, c *exchange.Call, e *exchange.Explained) (targeturl.URL, error) {
	if err := h.values.Check(r); err != nil {
		return targeturl.URL{}, err
	}
	text, err := h.target(repl, e)
	if err != nil {
		return targeturl.URL{}, fmt.Errorf("target: %w", err)
	}
	u, err := h.read(text, last, c)
	if err != nil {
		return u, err
	}
	if h.Path != "" {
		path, err := expand(repl, h.Path, h.confinePath)
		if err == nil {
			err = targeturl.CheckBytes(path)
		}
		if err != nil {
			return u, fmt.Errorf("path: %w", err) // which may be a secret
		}
		if !strings.HasPrefix(path, "/") {
			path = "/" + path
		}
		path, _, _ = strings.Cut(path, "#")
		u.SetPathAndQuery(path)
	}
	c.SetURL(u)
	switch {
	case u.HasPath:
	case strings.HasPrefix(r.RequestURI, "/"):
		c.URI = targeturl.EncodeURI(r.RequestURI) // as it will be sent
	default: // in absolute form, or none
		c.URI = r.URL.RequestURI()
	}
	if h.Host != "" {
		c.HostPort = repl.ReplaceAll(h.Host, "")
		if c.HostPort == "" || !targeturl.IsHostHeader(c.HostPort) {
			return u, fmt.Errorf("host %q is not a valid Host header", c.HostPort)
		}
	}
	return u, nil
}

// target returns the target as the request has it.
func (h *Handler) target(repl *caddy.Replacer, e *exchange.Explained) (string, error) {
	if e != nil && e.URL != nil {
		return *e.URL, nil
	}
	return expand(repl, h.URL, h.confineURL)
}

// expand puts values in the place of a template's placeholders. It is an error if one of
// them leaves its folder.
func expand(repl *caddy.Replacer, template string, c targeturl.Confinement) (string, error) {
	if c.IsZero() {
		return repl.ReplaceAll(template, ""), nil
	}
	marked, err := repl.ReplaceFunc(template, func(_ string, value any) (any, error) {
		return targeturl.Mark(caddy.ToString(value))
	})
	if err != nil {
		return "", err
	}
	return c.Unmark(marked)
}

// limitTime gives a request with a target the time that the handler's timeout says.
// stop has to be called at its end.
func (h *Handler) limitTime(w http.ResponseWriter, r *http.Request, repl *caddy.Replacer, c *exchange.Context) (stop func(), err error) {
	timeout, err := parseTimeout(repl.ReplaceAll(h.Timeout, ""))
	if err != nil {
		return func() {}, failure.NewMalformed(err)
	}
	if timeout == 0 {
		return func() {}, nil
	}
	return c.LimitTime(w, r, timeout), nil
}

func parseTimeout(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := caddy.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("timeout %q is not a duration: %w", s, err)
	}
	if d <= 0 {
		return 0, fmt.Errorf("timeout %s is not a positive duration", s)
	}
	return d, nil
}
