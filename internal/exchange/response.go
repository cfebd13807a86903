package exchange

import (
	"context"
	"errors"
	"io"
	"net/http"

	"caddytarget/internal/failure"
)

// responseBody is an attempt as the body of its response. It notes if the body does not come
// to its end.
type responseBody Attempt

// watchBody notes how the body of a response ends.
func (a *Attempt) watchBody(res *http.Response) {
	if res.StatusCode != http.StatusSwitchingProtocols && res.Body != http.NoBody {
		a.responseBody, a.responseTrailer = res.Body, &res.Trailer
		res.Body = (*responseBody)(a)
	}
}

// Read implements io.Reader.
func (b *responseBody) Read(p []byte) (n int, err error) {
	n, err = b.responseBody.Read(p)
	switch err {
	case nil:
		return n, nil
	case io.EOF:
		failure.DropProxyStatus(*b.responseTrailer)
		return n, err
	}
	a, ended := (*Attempt)(b), endOf(b.Out.Context())
	if ended == nil || errors.Is(ended, context.DeadlineExceeded) {
		failed := &failure.Error{Target: a.Call.Host, Address: a.Address(), Phase: failure.Response, Err: err, Incomplete: true}
		a.Call.ranOut(ended, failed)
		a.Call.State.Err = failed
	}
	return n, err
}

// Close implements io.Closer.
func (b *responseBody) Close() error { return b.responseBody.Close() }
