package record

import (
	"io"
	"net/http"
)

// Response notes the status of the response to a request.
type Response struct {
	http.ResponseWriter
	status int // 0: none yet
}

// Watch returns a writer for the response that notes its status.
func (r *Request) Watch(w http.ResponseWriter) *Response {
	r.response = &Response{ResponseWriter: w}
	return r.response
}

func (w *Response) begin(status int) {
	if w.status == 0 && (status >= http.StatusOK || status == http.StatusSwitchingProtocols) {
		w.status = status
	}
}

// WriteHeader implements http.ResponseWriter.
func (w *Response) WriteHeader(status int) {
	w.begin(status)
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *Response) Write(p []byte) (int, error) {
	w.begin(http.StatusOK)
	return w.ResponseWriter.Write(p)
}

// ReadFrom implements io.ReaderFrom.
func (w *Response) ReadFrom(r io.Reader) (int64, error) {
	w.begin(http.StatusOK)
	if to, ok := w.ResponseWriter.(io.ReaderFrom); ok {
		return to.ReadFrom(r)
	}
	return io.Copy(w.ResponseWriter, r)
}

// Push implements http.Pusher.
func (w *Response) Push(target string, opts *http.PushOptions) error {
	if p, ok := w.ResponseWriter.(http.Pusher); ok {
		return p.Push(target, opts)
	}
	return http.ErrNotSupported
}

// Unwrap returns the writer, for http.ResponseController.
func (w *Response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Interface guards
var (
	_ io.ReaderFrom = (*Response)(nil)
	_ http.Pusher   = (*Response)(nil)
)
