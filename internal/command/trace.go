package command

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"caddytarget/internal/admin"
	"caddytarget/internal/trace"
)

// showTrace is the command `caddy target trace`.
func showTrace(c *client) error {
	query := url.Values{"seconds": {c.flag("seconds")}}
	if c.flags.Changed("limit") {
		query.Set("limit", c.flag("limit"))
	}
	if c.flags.Changed("target") {
		query.Set("target", c.flag("target"))
	}
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- c.readTrace(query) }()
	select {
	case err := <-ended:
		return err
	case <-interrupted.Done():
		return nil
	}
}

// readTrace prints the events of a live trace until its end.
func (c *client) readTrace(query url.Values) error {
	res, err := c.send(http.MethodGet, "trace?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	lines := bufio.NewReader(res.Body)
	for name := ""; ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			return fmt.Errorf("the live trace has no end: %w", err)
		}
		field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch field {
		case "event":
			name = value
		case "data":
			if err := c.printEvent(name, value); err != nil || name == admin.EventEnd {
				return err
			}
			name = ""
		}
	}
}

// printEvent prints one event.
func (c *client) printEvent(name, data string) error {
	var err error
	switch name {
	case "":
		if c.json {
			if !json.Valid([]byte(data)) {
				return errors.New("reading the response: an event is not JSON")
			}
			return c.printJSON([]byte(data))
		}
		var e trace.Event
		if err := decode([]byte(data), &e); err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.out, admin.Printable(e.Line()))
	case admin.EventDropped:
		var d admin.TraceDropped
		if err := decode([]byte(data), &d); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.err, "%d requests are left out: this is too slow for them\n", d.Dropped)
	case admin.EventEnd:
		var end admin.TraceEnd
		if err := decode([]byte(data), &end); err != nil {
			return err
		}
		if end.Reason == "reload" {
			_, err = fmt.Fprintln(c.err, "The server has loaded another configuration, or stops")
		}
	}
	return err
}
