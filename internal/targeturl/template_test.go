package targeturl

import (
	"net/http"
	"testing"
)

// TestSingleValues checks which requests have a value twice that a template takes.
func TestSingleValues(t *testing.T) {
	v := SingleValuesOf("{http.request.header.x-target}", "/{http.request.uri.query.p}/{http.request.header.X-P}", "", "{unclosed")
	for _, test := range []struct {
		uri    string
		header http.Header
		ok     bool
	}{
		{"/", nil, true},
		{"/?p=1&q=1&q=2", http.Header{"X-Target": {"a,b"}, "X-P": {""}, "X-Other": {"a", "b"}}, true},
		{"/", http.Header{"X-Target": {"a", "b"}}, false},
		{"/", http.Header{"X-Target": {"a", "a"}}, false},
		{"/", http.Header{"X-Target": {"a", ""}}, false},
		{"/", http.Header{"X-P": {"a", "b"}}, false},
		{"/?p=1&p=2", nil, false},
		{"/?p=1&%70=2", nil, false},
		{"/?p&p", nil, false},
	} {
		r, err := http.NewRequest(http.MethodGet, test.uri, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header = test.header
		if err := v.Check(r); (err == nil) != test.ok {
			t.Errorf("%s %v: %v, want it accepted: %t", test.uri, test.header, err, test.ok)
		}
	}
}
