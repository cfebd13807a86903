package exchange

import (
	"context"
	"errors"
	"io"
	"net/http"

	"caddytarget/internal/failure"
)

// responseBody is the body of a response. It notes if the body does not come to its end.
type responseBody struct {
	io.ReadCloser
	attempt *Attempt
	trailer *http.Header // complete when the body has been read; nil until then if it was not announced
}

// watchBody notes how the body of a response ends.
func (a *Attempt) watchBody(res *http.Response) {
	if res.StatusCode != http.StatusSwitchingProtocols && res.Body != http.NoBody {
		a.responseBody = responseBody{res.Body, a, &res.Trailer}
		res.Body = &a.responseBody
	}
}

// Read implements io.Reader.
func (b *responseBody) Read(p []byte) (n int, err error) {
	n, err = b.ReadCloser.Read(p)
	switch a := b.attempt; {
	case err == nil:
	case err == io.EOF:
		failure.DropProxyStatus(*b.trailer)
	case a.Out.Context().Err() == nil || errors.Is(a.Out.Context().Err(), context.DeadlineExceeded):
		failed := &failure.Error{Target: a.Call.Host, Address: a.Address(), Phase: failure.Response, Err: err, Incomplete: true}
		a.Call.ranOut(a.Out.Context().Err(), failed)
		a.Call.State.Err = failed
	}
	return n, err
}
