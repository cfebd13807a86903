package exchange

import (
	"fmt"

	"caddytarget/internal/failure"
)

// Refused is why a request is not sent: an error that is answered with a status.
type Refused struct {
	Status int
	Err    error
}

func (e *Refused) Error() string { return e.Err.Error() }

func (e *Refused) Unwrap() error { return e.Err }

// Unsent is a failure before anything of a request was sent, or after which all of it can be
// sent again: any request may be tried elsewhere.
type Unsent struct{ Failure *failure.Error }

func (e Unsent) Error() string { return e.Failure.Error() }

func (e Unsent) Unwrap() error { return e.Failure }

// BodyFailed returns the error of a request whose body could not be read.
func BodyFailed(target string, err error) error {
	return &failure.Error{Target: target, Phase: failure.Request, Err: fmt.Errorf("reading the request's body: %w", err)}
}
