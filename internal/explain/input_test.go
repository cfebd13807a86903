package explain

import (
	"bufio"
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// TestInputRequest: a request is made of parameters as a server makes it.
func TestInputRequest(t *testing.T) {
	for _, query := range []url.Values{
		{"uri": {"http://127.0.0.7/x"}, "header": {"X-Port: 81", "Host: other.example"}},
		{"uri": {"127.0.0.7:443"}, "method": {"CONNECT"}, "header": {"X-Port: 81", "Host: other.example"}},
	} {
		in, err := NewInput(map[string]string{"uri": query.Get("uri"), "method": cmp.Or(query.Get("method"), "GET")}, query["header"])
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		fmt.Fprintf(&text, "%s %s HTTP/1.1\r\n%s\r\n\r\n", in.Request.Method, query.Get("uri"), strings.Join(query["header"], "\r\n"))
		live, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text.String())))
		if err != nil {
			t.Fatal(err)
		}
		if in.Request.Host != live.Host || *in.Request.URL != *live.URL || in.Request.RequestURI != live.RequestURI {
			t.Errorf("%v: got %s, %s, %s, want %s, %s, %s as of a server", query, in.Request.Host, in.Request.URL, in.Request.RequestURI, live.Host, live.URL, live.RequestURI)
		}
	}
}
