package failure

import (
	"fmt"
	"strings"
	"time"

	"caddytarget/internal/pool"
)

// The tokens of failures of addresses that are none of requests: the backend has answered.
const (
	UnhealthyStatus  Token = "unhealthy_status"
	UnhealthyLatency Token = "unhealthy_latency"
)

// Unhealthy is why a response counts as a failure of the address: one of its status and of
// how long it took.
type Unhealthy struct {
	Status  int
	Latency time.Duration
}

// Error implements error.
func (u *Unhealthy) Error() string {
	if u.Status != 0 {
		return fmt.Sprintf("response: status %d", u.Status)
	}
	return fmt.Sprintf("response: it took %s", u.Latency.Round(time.Millisecond))
}

// maxAddressText is how many octets the text of OfAddress may have.
const maxAddressText = 200

// OfAddress returns why an address failed, from an error of an attempt at it: a
// *pool.Error or *Unhealthy, or else the zero value. The text is for people, and is as
// that of Text.
func OfAddress(err error) (f Failure, text string) {
	switch e := err.(type) {
	case *Unhealthy:
		f = Failure{Phase: Response, Token: UnhealthyLatency}
		if e.Status != 0 {
			f.Token = UnhealthyStatus
		}
		text = e.Error()
	case *pool.Error:
		of := OfPool("", "", e)
		f, text = Of(of), strings.TrimPrefix(Text(of), ": ")
	default:
		return Failure{}, ""
	}
	if len(text) > maxAddressText {
		text = strings.ToValidUTF8(text[:maxAddressText], "") + "..."
	}
	return f, text
}

// AddressFailures are the failures that OfAddress may return.
func AddressFailures() []Failure {
	return failuresOf(map[Phase][]Token{
		Connect:  {ConnectionRefused, ConnectionTimeout, ConnectionTerminated, DestinationIPUnroutable},
		TLS:      {TLSCertificateError, TLSAlertReceived, TLSProtocolError, ConnectionTimeout, ConnectionTerminated},
		Send:     {ConnectionWriteTimeout, ConnectionTerminated},
		Response: {HTTPResponseTimeout, ConnectionReadTimeout, ConnectionTerminated, HTTPProtocolError, HTTPResponseHeaderSize, UnhealthyStatus, UnhealthyLatency},
	})
}
