package redirect

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"caddytarget/internal/targeturl"
)

// redirectTo returns a redirect.
func redirectTo(status int, locations ...string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{"Location": locations}, Body: http.NoBody}
}

// TestValidate has the options that are refused.
func TestValidate(t *testing.T) {
	var none *Options
	for _, test := range []struct {
		options *Options
		reason  string // empty: they are valid
	}{
		{none, ""},
		{&Options{Max: 1, Status: []int{303}, MaxBody: 1, Drop: []string{"X-*"}}, ""},
		{new(Options), "max 0"},
		{&Options{Max: 1, MaxBody: -1}, "max_body -1"},
		{&Options{Max: 1, MaxBody: maxBodyLimit + 1}, "max_body"},
		{&Options{Max: 1, Status: []int{304}}, "status 304"},
		{&Options{Max: 1, Drop: []string{"a b"}}, `drop: "a b"`},
	} {
		err := test.options.Validate()
		if (err != nil) != (test.reason != "") || err != nil && !strings.Contains(err.Error(), test.reason) {
			t.Errorf("%+v: got %v, want %q", test.options, err, test.reason)
		}
	}
}

// TestFollower follows two redirects with the same body, and a third that is one too many.
func TestFollower(t *testing.T) {
	out := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "http://a.example/x", strings.NewReader("body"))
	header := r.Header.Clone()
	f := NewFollower(&Options{Max: 2}, out, r)
	from, err := targeturl.Parse("http://a.example/x")
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ location, want, body string }{
		{"/y", "http://a.example/y", "body"},
		{"//b.example/z", "http://b.example/z", "body"},
	} {
		if body, _ := io.ReadAll(r.Body); string(body) != step.body {
			t.Errorf("%s: body %q, want %q", step.location, body, step.body)
		}
		f.Begin()
		if err := f.Responded(&from, r, redirectTo(http.StatusTemporaryRedirect, step.location), false); err != nil {
			t.Fatal(err)
		}
		f.WriteHeader(http.StatusTemporaryRedirect)
		_, _ = f.Write([]byte("moved"))
		if !f.Discarded() || out.Body.Len() > 0 {
			t.Fatalf("%s: the redirect was not discarded", step.location)
		}
		r, from = f.Next(r, header.Clone())
		if got := from.Scheme + "://" + from.HostPort + from.Path; got != step.want {
			t.Errorf("%s leads to %s, want %s", step.location, got, step.want)
		}
	}
	f.Begin()
	err = f.Responded(&from, r, redirectTo(http.StatusTemporaryRedirect, "/w"), false)
	if err == nil || !strings.Contains(err.Error(), "2 redirects") {
		t.Errorf("a third one: got %v, want that 2 were followed", err)
	}
	f.WriteHeader(http.StatusTemporaryRedirect)
	if f.Discarded() || out.Code != http.StatusTemporaryRedirect || f.Count() != 2 {
		t.Errorf("status %d, discarded %t after %d redirects, want 307, false after 2", out.Code, f.Discarded(), f.Count())
	}
}

// TestNotFollowed has the redirects that go on to the client, and why.
func TestNotFollowed(t *testing.T) {
	for _, test := range []struct {
		name   string
		res    *http.Response
		taken  bool
		reason string // empty: it is followed
	}{
		{"followed", redirectTo(302, "/"), false, ""},
		{"another status", redirectTo(301, "/"), false, "status 301"},
		{"taken", redirectTo(302, "/"), true, "handle_response"},
		{"no Location", redirectTo(302), false, "0 Location fields"},
		{"two", redirectTo(302, "/", "/a"), false, "2 Location fields"},
		{"another scheme", redirectTo(302, "ftp://a.example/"), false, "its Location"},
		{"to http", redirectTo(302, "http://a.example/"), false, "from https to http"},
		{"a lost body", redirectTo(307, "/"), false, "more than the 2 octets"},
		{"a lost body that is not needed", redirectTo(303, "/"), false, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("body"))
			f := NewFollower(&Options{Max: 1, MaxBody: 2, Status: []int{302, 303, 307}}, httptest.NewRecorder(), r)
			_, _ = io.ReadAll(r.Body)
			from, err := targeturl.Parse("https://a.example")
			if err != nil {
				t.Fatal(err)
			}
			err = f.Responded(&from, r, test.res, test.taken)
			if (err != nil) != (test.reason != "") || err != nil && !strings.Contains(err.Error(), test.reason) {
				t.Errorf("got %v, want %q", err, test.reason)
			}
		})
	}
}

// TestInterim: an interim response does not go on while redirects may follow.
func TestInterim(t *testing.T) {
	for max, want := range map[int]int{0: http.StatusEarlyHints, 1: http.StatusOK} {
		out := httptest.NewRecorder()
		f := NewFollower(&Options{Max: max}, out, httptest.NewRequest(http.MethodGet, "/", nil))
		f.WriteHeader(http.StatusEarlyHints)
		f.WriteHeader(http.StatusOK)
		if out.Code != want {
			t.Errorf("max %d: status %d, want %d", max, out.Code, want)
		}
	}
}
