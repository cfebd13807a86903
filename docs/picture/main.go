// Command picture draws the pictures of the documentation, docs/picture.svg and
// docs/states.svg. It is run from the root of the repository:
//
//	go run ./docs/picture
//
// A test compares the files with what it draws.
package main

import (
	"log"
	"os"
	"path/filepath"
)

// pictures are what is drawn, by the name of the file in docs.
var pictures = map[string]func() string{
	"picture.svg": overview,
	"states.svg":  states,
}

func main() {
	log.SetFlags(0)
	for name, draw := range pictures {
		if err := os.WriteFile(filepath.Join("docs", name), []byte(draw()), 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

// overview shows the way of a request.
func overview() string {
	d := newDrawing(1000, 332, "A request names its target; caddytarget checks and resolves it, and calls it over a pooled connection")
	d.frame(166, 14, 668, 304, "Caddy")
	d.frame(182, 50, 636, 146, "target_proxy")

	d.box(14, 76, 124, 100, plain, "request", "X-Target:", "https://", "shop.example/cart")
	d.box(196, 76, 132, 106, ours, "target", "Which URL?", "May it be called?", "Resolve the name.", "Set Host and path.")
	d.box(356, 76, 132, 106, plain, "reverse_proxy", "Caddy's own:", "retries, balancing,", "headers, bodies,", "WebSockets")
	d.box(516, 76, 132, 106, ours, "dynamic target", "Which addresses?", "Those that failed", "are left out.")
	d.box(676, 76, 132, 106, ours, "transport target", "Which connection?", "What is dialled is", "what was checked.")
	d.box(862, 76, 124, 100, plain, "backend", "shop.example", "192.0.2.10:443", "203.0.113.7:443")
	for _, x := range []float64{138, 328, 488, 648, 808} {
		to := x + 28
		switch x {
		case 138:
			to = 196
		case 808:
			to = 862
		}
		d.arrow("", point{x, 126}, point{to, 126})
	}

	d.box(196, 226, 132, 76, ours, "resolver", "a cache: fresh,", "stale, negative")
	d.box(356, 226, 132, 76, ours, "guard", "names, addresses,", "ports, schemes")
	d.box(516, 226, 132, 76, ours, "health", "which addresses", "failed, and how")
	d.box(676, 226, 132, 76, ours, "pools", "by address, target", "and TLS name")
	d.box(14, 226, 124, 76, plain, "nameservers", "UDP, TCP,", "TLS, HTTPS")
	d.both(point{262, 182}, point{262, 226})
	d.both(point{582, 182}, point{582, 226})
	d.both(point{742, 182}, point{742, 226})
	d.both(point{138, 264}, point{196, 264})
	// the guard is asked when the target is read and when it is dialled
	d.both(point{300, 182}, point{300, 206}, point{400, 206}, point{400, 226})
	d.both(point{708, 182}, point{708, 206}, point{444, 206}, point{444, 226})
	return d.String()
}

// states shows the states of an address.
func states() string {
	d := newDrawing(820, 372, "The states of an address: healthy, ejected, needs_probe, needs_trial")
	d.box(30, 146, 150, 74, plain, "healthy", "offered to requests")
	d.box(560, 146, 190, 74, plain, "ejected", "left out while others", "remain")
	d.box(290, 20, 190, 92, ours, "needs_probe", "one connection is opened", "in the background, beside", "a request")
	d.box(290, 266, 190, 92, ours, "needs_trial", "one request is sent there,", "a GET if there is one")

	d.arrow("", point{180, 172}, point{560, 172})
	d.label(370, 164, "fails max_fails times in a row")
	d.arrow("", point{560, 198}, point{180, 198})
	d.label(370, 216, "any response from it")

	d.arrow("", point{690, 146}, point{690, 46}, point{480, 46})
	d.label(600, 36, "fail_duration is over; only")
	d.label(600, 64, "a connection had failed")
	d.arrow("", point{690, 220}, point{690, 332}, point{480, 332})
	d.label(600, 322, "fail_duration is over;")
	d.label(600, 350, "a request had been sent")
	d.arrow("", point{480, 92}, point{600, 92}, point{600, 146})
	d.label(548, 108, "fails")
	d.arrow("", point{480, 286}, point{600, 286}, point{600, 220})
	d.label(548, 278, "fails")

	d.arrow("", point{290, 66}, point{105, 66}, point{105, 146})
	d.label(200, 58, "connected")
	d.arrow("", point{290, 312}, point{105, 312}, point{105, 220})
	d.label(200, 304, "any response")
	return d.String()
}
