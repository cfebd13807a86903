package caddytarget

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"slices"
	"strings"
)

// difference is where target_proxy is meant to differ from stock. A case that
// has one says what is wanted instead.
type difference string

const (
	statusOutside  difference = "a status outside of 100 to 999 is 502; stock breaks off the client's connection"
	headerTooLong  difference = "a response with over 256 KiB or 1000 fields in its head is 502; stock takes 10 MiB"
	headWithBody   difference = "the head of a request that has a body is sent with the first of the body; stock sends it at once"
	unaskedAnswer  difference = "what a backend sends without being asked is never taken for a response; with stock that is a race"
	closedWhenIdle difference = "a connection that was closed while it was idle is not used; with stock that is a race"
	bodyOfGET      difference = "a GET is repeated with its body, if that has 64 kB at most; stock has lost it"
	oneHandshake   difference = "a TLS handshake that failed is not tried again at the same address"
	oneForUpgrades difference = "a connection over which an upgrade was refused may serve any request; stock keeps it for upgrades"
	noConnect      difference = "CONNECT is 400; stock sends it on"
	noH2CUpgrade   difference = "an upgrade to h2c is not sent on"
	noUnasked101   difference = "a switch of the protocol that was not asked for is a failure; stock answers 200, or makes the connection a tunnel"
	bodyUnread     difference = "what is left of a body is never the next request; stock keeps the connection and reads on"
)

// wireCases are what TestWire plays.
func wireCases() []wireCase {
	return slices.Concat(
		framingCases(), headCases(), interimCases(), upgradeCases(), earlyCases(), breakCases(), trailerCases(),
		expectCases(), bodilessCases(), connectionCases(), gzipCases(), abortCases(), unaskedCases(), methodCases(),
		reuseCases(), requestCases(),
	)
}

// respond is a backend that takes a request and sends a response.
func respond(segments ...string) script { return script{take, send(segments...)} }

// then returns the script with more steps after it.
func (s script) then(more ...step) script { return slices.Concat(s, more) }

// text is so many octets in which no place looks like another.
func text(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprint(&b, i, " ")
	}
	return b.String()[:n]
}

// chunks is a chunked body.
func chunks(parts ...string) string {
	var b strings.Builder
	for _, part := range parts {
		fmt.Fprintf(&b, "%x\r\n%s\r\n", len(part), part)
	}
	return b.String() + "0\r\n\r\n"
}

// chunkedOK is the head of a response with a chunked body.
func chunkedOK(fields ...string) string {
	return message(append([]string{"HTTP/1.1 200 OK", "Transfer-Encoding: chunked"}, fields...)...)
}

// lengthOK is the head of a response with so many octets.
func lengthOK(n int, fields ...string) string {
	return message(append([]string{"HTTP/1.1 200 OK", fmt.Sprint("Content-Length: ", n)}, fields...)...)
}

// post is a request with a body.
func post(body string, fields ...string) string {
	return request("POST /", append(fields, fmt.Sprint("Content-Length: ", len(body)))...) + body
}

// framingCases are about where a body ends.
func framingCases() (cases []wireCase) {
	chunked := chunkedOK()
	for _, c := range []struct {
		name     string
		response string
		last     step // nil: the connection stays
	}{
		{"length", ok("hello"), nil},
		{"length 0", ok(""), nil},
		{"length of 10 kB", ok(text(10_000)), nil},
		{"length of 1 MB", ok(text(1_000_000)), nil},
		{"length, and closed", ok("hello"), hangUp},
		{"two equal lengths", lengthOK(5, "Content-Length: 5") + "hello", hangUp},
		{"equal lengths in one field", message("HTTP/1.1 200 OK", "Content-Length: 5, 5") + "hello", hangUp},
		{"two lengths that differ", lengthOK(5, "Content-Length: 6") + "hello!", hangUp},
		{"length and chunked", lengthOK(3, "Transfer-Encoding: chunked") + chunks("hello"), nil},
		{"chunked and length", chunkedOK("Content-Length: 3") + chunks("hello"), nil},
		{"negative length", message("HTTP/1.1 200 OK", "Content-Length: -5") + "hello", hangUp},
		{"length with a plus", message("HTTP/1.1 200 OK", "Content-Length: +5") + "hello", hangUp},
		{"length that is no number", message("HTTP/1.1 200 OK", "Content-Length: five") + "hello", hangUp},
		{"empty length", message("HTTP/1.1 200 OK", "Content-Length: ") + "hello", hangUp},
		{"length in hexadecimal", message("HTTP/1.1 200 OK", "Content-Length: 0x5") + "hello", hangUp},
		{"length with zeros before", message("HTTP/1.1 200 OK", "Content-Length: 0005") + "hello", nil},
		{"greatest length", message("HTTP/1.1 200 OK", "Content-Length: 9223372036854775807") + "hello", hangUp},
		{"length beyond 64 bits", message("HTTP/1.1 200 OK", "Content-Length: 99999999999999999999") + "hello", hangUp},
		{"body shorter than its length", lengthOK(10) + "hello", hangUp},
		{"until the end", message("HTTP/1.1 200 OK") + "hello", hangUp},
		{"until the end, 100 kB", message("HTTP/1.1 200 OK") + text(100_000), hangUp},
		{"until the end, nothing", message("HTTP/1.1 200 OK"), hangUp},
		{"until the end, below TLS", message("HTTP/1.1 200 OK") + "hello", cut},
		{"chunked", chunked + chunks("hello"), nil},
		{"chunked, empty", chunked + "0\r\n\r\n", nil},
		{"chunked, 100 kB in one", chunked + chunks(text(100_000)), nil},
		{"chunked, many", chunked + chunks(strings.Split(text(5000), " ")[:500]...), nil},
		{"chunked, and closed", chunked + chunks("hello"), hangUp},
		{"chunked, extensions", chunked + "5;name=value;other=\"a b\"\r\nhello\r\n0;last\r\n\r\n", nil},
		{"chunked, long extension", chunked + "5;" + text(5000) + "\r\nhello\r\n0\r\n\r\n", hangUp},
		{"chunked, zeros before the size", chunked + "0000005\r\nhello\r\n000\r\n\r\n", nil},
		{"chunked, size with capitals", chunked + "A\r\n0123456789\r\n0\r\n\r\n", nil},
		{"chunked, space after the size", chunked + "5 \r\nhello\r\n0\r\n\r\n", nil},
		{"chunked, bare LF", chunked + "5\nhello\n0\n\n", hangUp},
		{"chunked, no size", chunked + "\r\nhello\r\n0\r\n\r\n", hangUp},
		{"chunked, size that is no number", chunked + "xyz\r\nhello\r\n0\r\n\r\n", hangUp},
		{"chunked, negative size", chunked + "-5\r\nhello\r\n0\r\n\r\n", hangUp},
		{"chunked, size beyond 64 bits", chunked + "fffffffffffffffff\r\nhello\r\n0\r\n\r\n", hangUp},
		{"chunked, chunk longer than its size", chunked + "5\r\nhello!\r\n0\r\n\r\n", hangUp},
		{"chunked, twice", message("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + chunks("hello"), hangUp},
		{"chunked by another case", message("HTTP/1.1 200 OK", "transfer-encoding: Chunked") + chunks("hello"), nil},
		{"gzip, chunked", message("HTTP/1.1 200 OK", "Transfer-Encoding: gzip, chunked") + chunks("hello"), hangUp},
		{"identity", message("HTTP/1.1 200 OK", "Transfer-Encoding: identity", "Content-Length: 5") + "hello", hangUp},
		{"HTTP/1.0", message("HTTP/1.0 200 OK", "Content-Length: 5") + "hello", nil},
		{"HTTP/1.0, until the end", message("HTTP/1.0 200 OK") + "hello", hangUp},
		{"HTTP/1.0 that stays open", message("HTTP/1.0 200 OK", "Connection: keep-alive", "Content-Length: 5") + "hello", nil},
		{"HTTP/1.0, chunked", message("HTTP/1.0 200 OK", "Transfer-Encoding: chunked") + chunks("hello"), hangUp},
	} {
		backend := respond(c.response)
		if c.last != nil {
			backend = backend.then(c.last)
		}
		cases = append(cases, wireCase{name: c.name, backend: backend})
	}
	return append(cases,
		wireCase{name: "one by one", backend: script{take, drip(ok("hello", "X-A: b"))}},
		wireCase{name: "one by one, chunked", backend: script{take, drip(chunkedOK() + chunks("hello", "world"))}},
		wireCase{name: "segments, after the status line", backend: respond("HTTP/1.1 200 OK\r\n", "Content-Length: 5\r\n\r\n", "hello")},
		wireCase{name: "segments, between CR and LF", backend: respond("HTTP/1.1 200 OK\r", "\nContent-Length: 5\r", "\n\r", "\nhello")},
		wireCase{name: "segments, in a chunk's size", backend: respond(chunkedOK()+"1", "0\r", "\n0123456789", "abcdef\r", "\n0\r\n", "\r\n")},
		wireCase{name: "a stream of chunks", backend: script{
			take, send(chunkedOK() + "5\r\nfirst\r\n"), await("first"), send("6\r\nsecond\r\n"), await("second"), send("0\r\n\r\n"),
		}, client: script{
			send(request("GET /")), readResponse, readSome(5), tell("first"), readSome(6), tell("second"), readBody,
		}},
		wireCase{name: "a stream of events", backend: script{
			take, send(message("HTTP/1.1 200 OK", "Content-Type: text/event-stream") + "data: 1\n\n"), await("first"), send("data: 2\n\n"), hangUp,
		}, client: script{
			send(request("GET /")), readResponse, readSome(9), tell("first"), readBody,
		}},
	)
}

// headCases are about the head of a response. The list is long because the cases are many.
func headCases() (cases []wireCase) {
	line := func(status string, fields ...string) string {
		return message(append([]string{status, "Content-Length: 5"}, fields...)...) + "hello"
	}
	field := func(fields ...string) string { return line("HTTP/1.1 200 OK", fields...) }
	many := func(n int) (fields []string) {
		for i := range n {
			fields = append(fields, fmt.Sprintf("X-%d: %d", i, i))
		}
		return fields
	}
	for _, c := range []struct {
		name     string
		response string
		differs  difference
	}{
		{"no reason", line("HTTP/1.1 200"), ""},
		{"empty reason", line("HTTP/1.1 200 "), ""},
		{"another reason", line("HTTP/1.1 200 All is well"), ""},
		{"reason with spaces", line("HTTP/1.1 200   OK  "), ""},
		{"reason that is not ASCII", line("HTTP/1.1 200 für\xff"), ""},
		{"two spaces before the status", line("HTTP/1.1  200 OK"), ""},
		{"tab before the status", line("HTTP/1.1\t200 OK"), ""},
		{"status line of HTTP/1.2", line("HTTP/1.2 200 OK"), ""},
		{"status line of HTTP/2.0", line("HTTP/2.0 200 OK"), ""},
		{"status line of HTTP/1", line("HTTP/1 200 OK"), ""},
		{"status line of HTTP/1.10", line("HTTP/1.10 200 OK"), ""},
		{"status line of HTTP/0.9", line("HTTP/0.9 200 OK"), ""},
		{"status line in small letters", line("http/1.1 200 OK"), ""},
		{"status line of ICY", line("ICY 200 OK"), ""},
		{"status of two digits", line("HTTP/1.1 20 OK"), ""},
		{"status of four digits", line("HTTP/1.1 2000 OK"), ""},
		{"negative status", line("HTTP/1.1 -20 OK"), ""},
		{"status with a plus", line("HTTP/1.1 +20 OK"), statusOutside},
		{"no status", line("HTTP/1.1"), ""},
		{"status 099", line("HTTP/1.1 099 Odd"), statusOutside},
		{"status 000", line("HTTP/1.1 000 Odd"), statusOutside},
		{"status 299", line("HTTP/1.1 299 Odd"), ""},
		{"status 600", line("HTTP/1.1 600 Odd"), ""},
		{"status 999", line("HTTP/1.1 999 Odd"), ""},
		{"status 502", line("HTTP/1.1 502 Bad Gateway"), ""},
		{"empty line before", "\r\n" + ok("hello"), ""},
		{"bare LF", "HTTP/1.1 200 OK\nContent-Length: 5\nX-A: b\n\nhello", ""},
		{"folded field", field("X-A: one", " two", "\tthree"), ""},
		{"folded first field", message("HTTP/1.1 200 OK", " X-A: b", "Content-Length: 5") + "hello", ""},
		{"field without a colon", field("X-A b"), ""},
		{"space before the colon", field("X-A : b"), ""},
		{"space in a name", field("X A: b"), ""},
		{"no name", field(": b"), ""},
		{"no value", field("X-A:"), ""},
		{"no space after the colon", field("X-A:b"), ""},
		{"spaces around a value", field("X-A:  \t b \t "), ""},
		{"name in small letters", field("x-a: b"), ""},
		{"odd characters in a name", field("X!#$%&'*+.^_`|~: b"), ""},
		{"name that is not ASCII", field("X-Ä: b"), ""},
		{"value that is not ASCII", field("X-A: für \xff"), ""},
		{"NUL in a value", field("X-A: a\x00b"), ""},
		{"control character in a value", field("X-A: a\x07b"), ""},
		{"CR in a value", field("X-A: a\rb"), ""},
		{"one field twice", field("X-A: 1", "X-B: 2", "X-A: 3"), ""},
		{"cookies", field("Set-Cookie: a=1", "Set-Cookie: b=2; Path=/"), ""},
		{"own Date, Server and Via", field("Date: Thu, 01 Jan 1970 00:00:00 GMT", "Server: x", "Via: 1.1 y"), ""},
		{"a long field", field("X-A: " + text(100_000)), ""},
		{"a field of 200 KiB", field("X-A: " + text(200<<10)), ""},
		{"a field of 300 KiB", field("X-A: " + text(300<<10)), headerTooLong},
		{"900 fields", field(many(900)...), ""},
		{"1100 fields", field(many(1100)...), headerTooLong},
		{"garbage", "\x00\x01\x02 this is not HTTP\r\n\r\n", ""},
		{"garbage without an end", text(5000), ""},
		{"a TLS alert", "\x15\x03\x01\x00\x02\x02\x46", ""},
		{"HTML alone", "<html><body>hello</body></html>\r\n\r\n", ""},
	} {
		backend := respond(c.response)
		if !strings.Contains(strings.ReplaceAll(c.response, "\r", ""), "\n\n") {
			backend = backend.then(hangUp) // more is waited for
		}
		w := wireCase{name: c.name, backend: backend, differs: c.differs}
		if c.differs != "" {
			w.want = []string{"the client", "HTTP/1.1 502 Bad Gateway", "the connection goes on", "another request", "HTTP/1.1 200 OK", `body "after"`}
		}
		cases = append(cases, w)
	}
	return append(cases,
		wireCase{name: "a greeting of SMTP", backend: script{send("220 mail.example ESMTP\r\n"), take, send("500 what?\r\n"), hangUp},
			differs: unaskedAnswer, want: []string{"the client", "HTTP/1.1 502 Bad Gateway", "the connection goes on"}},
		wireCase{name: "a greeting of SSH", backend: script{send("SSH-2.0-OpenSSH_9.9\r\n"), take, hangUp},
			differs: unaskedAnswer, want: []string{"the client", "HTTP/1.1 502 Bad Gateway", "the connection goes on"}},
	)
}

// interimCases are about responses before the response.
func interimCases() (cases []wireCase) {
	hints := message("HTTP/1.1 103 Early Hints", "Link: </a.css>; rel=preload")
	more := message("HTTP/1.1 103 Early Hints", "Link: </b.js>; rel=preload", "X-A: b")
	goOn := message("HTTP/1.1 100 Continue")
	for _, c := range []struct{ name, response string }{
		{"100 unasked", goOn + ok("hello")},
		{"100 with a field", message("HTTP/1.1 100 Continue", "X-A: b") + ok("hello")},
		{"102", message("HTTP/1.1 102 Processing") + ok("hello")},
		{"103", hints + ok("hello")},
		{"103, three of them", hints + more + hints + ok("hello")},
		{"103 with hop-by-hop fields", message("HTTP/1.1 103 Early Hints", "Connection: X-Hop", "X-Hop: 1", "X-A: b") + ok("hello")},
		{"103 with a length", message("HTTP/1.1 103 Early Hints", "Content-Length: 5") + ok("hello")},
		{"100, 103 and the response", goOn + hints + ok("hello")},
		{"103 and 404", hints + message("HTTP/1.1 404 Not Found", "Content-Length: 0")},
		{"103 and a chunked response", hints + chunkedOK() + chunks("hello")},
		{"199", message("HTTP/1.1 199 Odd") + ok("hello")},
		{"five of 100", strings.Repeat(goOn, 5) + ok("hello")},
	} {
		cases = append(cases, wireCase{name: "interim " + c.name, backend: respond(c.response)})
	}
	return append(cases,
		wireCase{name: "interim 103 long before the response", backend: script{take, send(hints), await("hints"), send(ok("hello"))},
			client: script{send(request("GET /")), readInterim, tell("hints"), readResponse, readBody}},
		wireCase{name: "interim 103 for a POST", client: script{ask(post("hello"))}, backend: respond(hints + ok("world"))},
		wireCase{name: "interim 100 and closed", backend: respond(goOn).then(hangUp)},
		wireCase{name: "interim 103 and closed", backend: respond(hints).then(hangUp)},
		wireCase{name: "interim 103 and reset, POST", client: script{send(post("hello")), readInterim, tell("hints"), readResponse, readBody}, backend: script{
			take, send(hints), await("hints"), reset,
		}, second: respond(ok("again"))},
		wireCase{name: "interim 103 in the middle", backend: respond("HTTP/1.1 103 Early Hints\r\nLink: <", "/a.css>\r\n\r", "\n"+ok("hello"))},
		wireCase{name: "interim 103 without an end", backend: respond(strings.Repeat(hints, 20)).then(hangUp)},
	)
}

// upgradeCases are about connections that change over to something else.
func upgradeCases() []wireCase {
	ask101 := request("GET /ws", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")
	yes := message("HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
	readUpgrade := script{send(ask101), readResponse}
	return []wireCase{
		{name: "upgrade", client: readUpgrade.then(send("ping"), readRaw(4), hangUp),
			backend: script{take, send(yes), readRaw(4), send("pong"), gone}},
		{name: "upgrade with octets behind the head", client: readUpgrade.then(readRaw(5), send("ping"), readRaw(4), hangUp),
			backend: script{take, send(yes + "hello"), readRaw(4), send("pong"), gone}},
		{name: "upgrade with 100 kB behind the head", client: readUpgrade.then(readRaw(100_000), hangUp),
			backend: script{take, send(yes + text(100_000)), gone}},
		{name: "upgrade with octets of the client behind the request", client: script{send(ask101 + "early"), readResponse, readRaw(4), hangUp},
			backend: script{take, send(yes), readRaw(5), send("pong"), gone}},
		{name: "upgrade that the backend ends", client: readUpgrade.then(readRaw(5), readEnd, hangUp),
			backend: script{take, send(yes + "hello"), hangUp}},
		{name: "upgrade that the backend ends one way", client: readUpgrade.then(readRaw(5), readEnd, hangUp),
			backend: script{take, send(yes + "hello"), shut, gone}},
		{name: "upgrade that the client ends one way", client: readUpgrade.then(send("ping"), shut, readRaw(4), readEnd),
			backend: script{take, send(yes), readRaw(4), readEnd, send("pong"), hangUp}},
		{name: "upgrade that the client resets", client: readUpgrade.then(reset), backend: script{take, send(yes), gone}},
		{name: "upgrade that the backend resets", client: readUpgrade.then(tell("upgraded"), gone),
			backend: script{take, send(yes), await("upgraded"), reset}},
		{name: "upgrade answered with 200", client: script{ask(ask101)}, backend: respond(ok("hello")),
			differs: oneForUpgrades, want: []string{"the client", "HTTP/1.1 200 OK", `body "hello"`, "the connection goes on", "Connection: Upgrade", "Upgrade: websocket", `body "after"`}},
		{name: "upgrade answered with 426", client: script{ask(ask101)},
			backend: respond(message("HTTP/1.1 426 Upgrade Required", "Upgrade: other", "Connection: Upgrade", "Content-Length: 0")),
			differs: oneForUpgrades, want: []string{"the client", "HTTP/1.1 426 Upgrade Required", "the connection goes on", "Connection: Upgrade", "Upgrade: websocket", `body "after"`}},
		{name: "upgrade to something else", client: script{ask(ask101)},
			backend: respond(message("HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: other")).then(gone)},
		{name: "upgrade without a name", client: script{ask(ask101)},
			backend: respond(message("HTTP/1.1 101 Switching Protocols", "Connection: Upgrade")).then(gone)},
		{name: "upgrade after 103", client: script{send(ask101), readResponse, readRaw(5), hangUp},
			backend: script{take, send(message("HTTP/1.1 103 Early Hints", "X-A: b") + yes + "hello"), gone}},
		{name: "upgrade that breaks", client: script{ask(ask101)}, backend: script{take, reset}},
		{name: "upgrade of another protocol", client: script{send(request("GET /", "Connection: Upgrade", "Upgrade: odd/1")), readResponse, send("ping"), readRaw(4), hangUp},
			backend: script{take, send(message("HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: odd/1")), readRaw(4), send("pong"), gone}},
		{name: "101 unasked", backend: respond(yes).then(gone), differs: noUnasked101, want: []string{"the client", "HTTP/1.1 502 Bad Gateway"}},
		{name: "101 unasked, without a name", backend: respond(message("HTTP/1.1 101 Switching Protocols", "Connection: Upgrade")).then(gone),
			differs: noUnasked101, want: []string{"the client", "HTTP/1.1 502 Bad Gateway"}},
		{name: "upgrade to h2c", differs: noH2CUpgrade,
			client:  script{ask(request("GET /", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"))},
			backend: respond(ok("hello")),
			want:    []string{"the client", "HTTP/1.1 200 OK", "connection 1 of the backend", "Host: wire.example", "Via: 1.1 Caddy", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Host: wire.example", "X-Forwarded-Proto: http"}},
	}
}

// earlyCases are about responses that come before the request is complete.
func earlyCases() []wireCase {
	large := request("POST /", "Content-Length: 1000000") + text(10_000)
	tooLarge := message("HTTP/1.1 413 Content Too Large", "Connection: close", "Content-Length: 2") + "no"
	dripping := request("POST /", "Content-Length: 15")
	return []wireCase{
		{name: "413 while a body is sent", client: script{ask(large), tell("read"), hangUp}, duplex: true,
			backend: script{readHead, send(tooLarge), await("read"), hangUp}},
		{name: "413 while a body is sent, and one way closed", client: script{ask(large), tell("read"), hangUp}, duplex: true,
			backend: script{readHead, send(tooLarge), shut, await("read"), hangUp}},
		{name: "413 while a body is sent, and reset", client: script{ask(large), tell("read"), hangUp}, duplex: true,
			backend: script{readHead, send(tooLarge), await("read"), reset}},
		{name: "413 to a body that is not read", client: script{ask(post("hello")), tell("read")},
			backend: script{readHead, readSome(1), send(tooLarge), await("read"), hangUp}},
		{name: "413 while chunks are sent", client: script{ask(request("POST /", "Transfer-Encoding: chunked") + "5\r\nhello\r\n"), tell("read"), hangUp}, duplex: true,
			backend: script{readHead, readSome(5), send(tooLarge), await("read"), hangUp}},
		{name: "200 before the body", duplex: true,
			client:  script{send(dripping + "first"), readResponse, readSome(5), send("other"), tell("other"), readSome(5), send("third"), readBody},
			backend: script{readHead, readSome(5), send(chunkedOK() + "5\r\nhello\r\n"), await("other"), readSome(5), send("5\r\nworld\r\n"), readBody, send("0\r\n\r\n")}},
		{name: "200 before chunks", duplex: true,
			client: script{send(request("POST /", "Transfer-Encoding: chunked") + "5\r\nfirst\r\n"), readResponse, readSome(5),
				send("5\r\nother\r\n"), readSome(5), send("0\r\n\r\n"), readBody},
			backend: script{readHead, readSome(5), send(chunkedOK() + "5\r\nhello\r\n"), readSome(5), send("5\r\nworld\r\n"), readBody, send("0\r\n\r\n")}},
		{name: "a whole 200 before the body", duplex: true,
			client:  script{send(dripping + "first"), readResponse, readBody, tell("read"), hangUp},
			backend: script{readHead, readSome(5), send(ok("hello")), await("read"), gone}},
		{name: "200 to a body that is not read, and reset",
			client:  script{send(post("hello")), readResponse, readSome(5), tell("read"), readBody},
			backend: script{readHead, readSome(1), send(chunkedOK() + "5\r\nworld\r\n"), await("read"), reset}},
		{name: "200 to a body that is not read, and closed",
			client:  script{send(post("hello")), readResponse, readSome(5), tell("read"), readBody},
			backend: script{readHead, readSome(1), send(chunkedOK() + "5\r\nworld\r\n"), await("read"), hangUp}},
		{name: "a body that drips", client: script{send(dripping + "f"), await("f"), send("irstother"), await("other"), send("third"), readResponse, readBody},
			backend: script{readHead, readSome(1), tell("f"), readSome(9), tell("other"), readBody, send(ok("hello"))}},
		{name: "chunks that drip",
			client: script{send(request("POST /", "Transfer-Encoding: chunked") + "5\r\nfirst\r\n"), await("first"), send("5\r\nother\r\n"), await("other"),
				send("0\r\n\r\n"), readResponse, readBody},
			backend: script{readHead, readSome(5), tell("first"), readSome(5), tell("other"), readBody, send(ok("hello"))}},
		{name: "a head without its body", differs: headWithBody,
			client:  script{send(dripping), soon("head"), tell("body"), send("firstotherthird"), readResponse, readBody},
			backend: script{readHead, tell("head"), await("body"), readBody, send(ok("hello"))},
			want:    []string{"the client", "not soon: head", "HTTP/1.1 200 OK", `body "hello"`, `body "firstotherthird"`}},
		{name: "a head without its chunks", differs: headWithBody,
			client:  script{send(request("POST /", "Transfer-Encoding: chunked")), soon("head"), tell("body"), send(chunks("hello")), readResponse, readBody},
			backend: script{readHead, tell("head"), await("body"), readBody, send(ok("hello"))},
			want:    []string{"the client", "not soon: head", "HTTP/1.1 200 OK", `body "hello"`, `body "hello"`}},
	}
}

// breakCases are connections that break, at each point and in each way.
func breakCases() (cases []wireCase) {
	chunked := chunkedOK("Trailer: X-T")
	for _, point := range []struct {
		name  string
		steps script
	}{
		{"before anything", nil},
		{"after the request", script{take}},
		{"in the status line", respond("HTTP/1.1 20")},
		{"after the status line", respond("HTTP/1.1 200 OK\r\n")},
		{"in a field", respond("HTTP/1.1 200 OK\r\nX-A: b")},
		{"before the end of the head", respond("HTTP/1.1 200 OK\r\nX-A: b\r\n")},
		{"after the head", respond(lengthOK(10))},
		{"in the body", respond(lengthOK(10) + "hello")},
		{"in a long body", respond(lengthOK(100_000) + text(50_000))},
		{"in a chunk", respond(chunked + "a\r\nhello")},
		{"after a chunk", respond(chunked + "5\r\nhello")},
		{"between chunks", respond(chunked + "5\r\nhello\r\n")},
		{"in a size", respond(chunked + "5\r\nhello\r\n1")},
		{"before the trailer", respond(chunked + "5\r\nhello\r\n0\r\n")},
		{"in the trailer", respond(chunked + "5\r\nhello\r\n0\r\nX-T: b")},
		{"after the trailer", respond(chunked + "5\r\nhello\r\n0\r\nX-T: b\r\n\r\n")},
		{"after a head without a length", respond(message("HTTP/1.1 200 OK"))},
		{"after a body without a length", respond(message("HTTP/1.1 200 OK") + "hello")},
	} {
		for _, end := range []struct {
			name string
			step step
			only string
		}{{"closed", hangUp, ""}, {"reset", reset, ""}, {"cut", cut, onlyTLS}} {
			cases = append(cases, wireCase{name: end.name + " " + point.name, backend: point.steps.then(end.step), only: end.only})
		}
	}
	for _, c := range []wireCase{
		{name: "closed after a POST", backend: script{take, hangUp}},
		{name: "reset after a POST", backend: script{take, reset}},
		{name: "closed after the head of a POST", backend: script{readHead, hangUp}},
		{name: "reset after the head of a POST", backend: script{readHead, reset}},
		{name: "reset in the response to a POST", backend: script{take, send("HTTP/1.1 200 OK\r\n"), reset}},
		{name: "closed in the body of the response to a POST", backend: script{take, send(lengthOK(10) + "hello"), hangUp}},
	} {
		c.client = script{ask(post("hello"))}
		cases = append(cases, c)
	}
	return append(cases,
		wireCase{name: "reset while a long body is sent", client: script{anyway(send(post(text(1_000_000)))), readResponse, readBody, hangUp}, backend: script{readHead, readSome(100_000), reset},
			// how much is left depends on the system's buffers: stock keeps the connection in any case
			differs: bodyUnread, want: []string{"the client", "HTTP/1.1 502 Bad Gateway", "connection 1 of the backend", "POST / HTTP/1.1", "connection 2 of the backend", "another request", `body "after"`}},
		wireCase{name: "reset, and then an answer", backend: script{take, reset}, second: respond(ok("again"))},
		wireCase{name: "garbage, and then an answer", backend: respond("garbage\r\n\r\n"), second: respond(ok("again"))},
		wireCase{name: "reset after a GET with a body, and then an answer", client: script{ask(request("GET /", "Content-Length: 5") + "hello")},
			backend: script{take, reset}, second: respond(ok("again")),
			differs: bodyOfGET, want: []string{"the client", "HTTP/1.1 200 OK", `body "again"`, `body "hello"`, "connection 2 of the backend", `body "hello"`, "another request"}},
		wireCase{name: "http behind https", backend: script{send("HTTP/1.1 400 Bad Request\r\n\r\n"), hangUp}, raw: true, only: onlyTLS,
			differs: oneHandshake, want: []string{"the client", "HTTP/1.1 502 Bad Gateway", "connection 1 of the backend", "connection 2 of the backend", "another request"}},
		wireCase{name: "a handshake that is closed", backend: script{hangUp}, raw: true, only: onlyTLS,
			differs: oneHandshake, want: []string{"the client", "HTTP/1.1 502 Bad Gateway", "connection 1 of the backend", "connection 2 of the backend", "another request"}},
	)
}

// trailerCases are about what follows a body.
func trailerCases() []wireCase {
	last := "5\r\nhello\r\n0\r\n"
	chunked := func(fields ...string) string {
		return request("POST /", append(fields, "Transfer-Encoding: chunked")...)
	}
	return []wireCase{
		{name: "trailer", backend: respond(chunkedOK("Trailer: X-T") + last + "X-T: b\r\n\r\n")},
		{name: "trailer of three fields", backend: respond(chunkedOK("Trailer: X-T, X-U", "Trailer: X-V") + last + "X-U: 1\r\nX-T: 2\r\nX-V: 3\r\n\r\n")},
		{name: "trailer that was not announced", backend: respond(chunkedOK() + last + "X-T: b\r\n\r\n")},
		{name: "trailer that was announced in part", backend: respond(chunkedOK("Trailer: X-T") + last + "X-T: b\r\nX-U: c\r\n\r\n")},
		{name: "trailer that does not come", backend: respond(chunkedOK("Trailer: X-T") + last + "\r\n")},
		{name: "trailer with a field twice", backend: respond(chunkedOK("Trailer: X-T") + last + "X-T: 1\r\nX-T: 2\r\n\r\n")},
		{name: "trailer with an odd line", backend: respond(chunkedOK("Trailer: X-T") + last + "no colon\r\n\r\n").then(hangUp)},
		{name: "trailer that may be none", backend: respond(chunkedOK("Trailer: Content-Length") + last + "Content-Length: 3\r\n\r\n").then(hangUp)},
		{name: "trailer after no body", backend: respond(chunkedOK("Trailer: X-T") + "0\r\nX-T: b\r\n\r\n")},
		{name: "trailer in another segment", backend: respond(chunkedOK("Trailer: X-T")+last, "X-T: b\r", "\n\r", "\n")},
		{name: "trailer of 100 kB", backend: script{take, anyway(send(chunkedOK("Trailer: X-T") + last + "X-T: " + text(100_000) + "\r\n\r\n")), hangUp}},
		{name: "trailer of a request", client: script{ask(chunked("Trailer: X-T") + last + "X-T: b\r\n\r\n")}, backend: respond(ok("hello"))},
		{name: "trailer of a request, two fields", client: script{ask(chunked("Trailer: X-T, X-U") + last + "X-U: 1\r\nX-T: 2\r\n\r\n")}, backend: respond(ok("hello"))},
		{name: "trailer of a request, not announced", client: script{ask(chunked() + last + "X-T: b\r\n\r\n")}, backend: respond(ok("hello"))},
		{name: "trailer of a request, with TE", client: script{ask(chunked("TE: trailers", "Trailer: X-T") + last + "X-T: b\r\n\r\n")}, backend: respond(ok("hello"))},
		{name: "trailer of a request that does not come", client: script{ask(chunked("Trailer: X-T") + last + "\r\n")}, backend: respond(ok("hello"))},
		{name: "trailer of a GET", client: script{ask(request("GET /", "Transfer-Encoding: chunked", "Trailer: X-T") + last + "X-T: b\r\n\r\n")}, backend: respond(ok("hello"))},
	}
}

// expectCases are about Expect: 100-continue.
func expectCases() []wireCase {
	head := request("POST /", "Content-Length: 5", "Expect: 100-continue")
	chunked := request("POST /", "Transfer-Encoding: chunked", "Expect: 100-continue")
	waiting := script{send(head), readInterim, send("hello"), readResponse, readBody}
	goOn := send(message("HTTP/1.1 100 Continue"))
	failed := message("HTTP/1.1 417 Expectation Failed", "Content-Length: 0")
	return []wireCase{
		{name: "expect, 100", client: waiting, backend: script{readHead, goOn, readBody, send(ok("world"))}},
		{name: "expect, 100 and 103", client: waiting,
			backend: script{readHead, goOn, send(message("HTTP/1.1 103 Early Hints", "X-A: b")), readBody, send(ok("world"))}},
		{name: "expect, no 100", client: waiting, backend: respond(ok("world"))},
		{name: "expect, 417", client: waiting, backend: respond(failed)},
		{name: "expect, 417 and closed", client: waiting, backend: respond(message("HTTP/1.1 417 Expectation Failed", "Connection: close", "Content-Length: 0")).then(hangUp)},
		{name: "expect, not waited for", client: script{ask(head + "hello")}, backend: script{readHead, goOn, readBody, send(ok("world"))}},
		{name: "expect, not waited for, no 100", client: script{ask(head + "hello")}, backend: respond(ok("world"))},
		{name: "expect, not waited for, 417", client: script{ask(head + "hello")}, backend: respond(failed)},
		{name: "expect, chunked", client: script{send(chunked), readInterim, send(chunks("hello")), readResponse, readBody}, backend: script{readHead, goOn, readBody, send(ok("world"))}},
		{name: "expect, no body", client: script{ask(request("POST /", "Content-Length: 0", "Expect: 100-continue"))}, backend: respond(ok("world"))},
		{name: "expect, something else", client: script{ask(post("hello", "Expect: wonders"))}, backend: respond(ok("world"))},
		{name: "expect, reset", client: waiting, backend: script{take, reset}},
	}
}

// bodilessCases are about responses that have no body, whatever they say.
func bodilessCases() (cases []wireCase) {
	for _, c := range []struct{ name, method, response string }{
		{"HEAD with a length", "HEAD", lengthOK(5)},
		{"HEAD, chunked", "HEAD", chunkedOK()},
		{"HEAD without either", "HEAD", message("HTTP/1.1 200 OK")},
		{"HEAD, 404", "HEAD", message("HTTP/1.1 404 Not Found", "Content-Length: 7")},
		{"HEAD of HTTP/1.0", "HEAD", message("HTTP/1.0 200 OK", "Content-Length: 7")},
		{"HEAD with lengths that differ", "HEAD", lengthOK(5, "Content-Length: 6")},
		{"204", "GET", message("HTTP/1.1 204 No Content")},
		{"204 with length 0", "GET", message("HTTP/1.1 204 No Content", "Content-Length: 0")},
		{"204 with a length", "GET", message("HTTP/1.1 204 No Content", "Content-Length: 5")},
		{"204, chunked", "GET", message("HTTP/1.1 204 No Content", "Transfer-Encoding: chunked")},
		{"204 of a POST", "POST", message("HTTP/1.1 204 No Content")},
		{"205", "GET", message("HTTP/1.1 205 Reset Content", "Content-Length: 0")},
		{"205 with a body", "GET", message("HTTP/1.1 205 Reset Content", "Content-Length: 5") + "hello"},
		{"304", "GET", message("HTTP/1.1 304 Not Modified", `ETag: "a"`)},
		{"304 with a length", "GET", message("HTTP/1.1 304 Not Modified", "Content-Length: 5")},
		{"304, chunked", "GET", message("HTTP/1.1 304 Not Modified", "Transfer-Encoding: chunked")},
		{"304 of HEAD", "HEAD", message("HTTP/1.1 304 Not Modified", "Content-Length: 5")},
	} {
		cases = append(cases, wireCase{name: "bodiless " + c.name, client: script{ask(request(c.method + " /"))}, backend: respond(c.response)})
	}
	return cases
}

// connectionCases are about fields that are for one connection.
func connectionCases() (cases []wireCase) {
	for _, c := range []struct{ name, response string }{
		{"close", ok("hello", "Connection: close")},
		{"close, chunked", chunkedOK("Connection: close") + chunks("hello")},
		{"Close, with a capital", ok("hello", "Connection: Close")},
		{"close among others", ok("hello", "Connection: X-Hop, close", "X-Hop: 1")},
		{"close, no body", message("HTTP/1.1 204 No Content", "Connection: close")},
		{"keep-alive", ok("hello", "Connection: keep-alive")},
		{"keep-alive with a time", ok("hello", "Connection: keep-alive", "Keep-Alive: timeout=5, max=100")},
		{"names of fields", ok("hello", "Connection: X-Hop, X-Hup", "X-Hop: 1", "X-Hup: 2", "X-Stays: 3")},
		{"hop-by-hop fields", ok("hello", "Proxy-Connection: a", "Te: b", "Proxy-Authenticate: c", "Upgrade: d")},
		{"Proxy-Connection: close", ok("hello", "Proxy-Connection: close")},
	} {
		cases = append(cases, wireCase{name: "connection " + c.name, client: script{ask(request("GET /")), ask(post("second"))}, backend: respond(c.response).then(respond(ok("second"))...)})
		if strings.Contains(strings.ToLower(c.response), "connection: close") || strings.Contains(c.response, ", close") {
			last := &cases[len(cases)-1]
			last.backend, last.second = respond(c.response).then(gone), respond(ok("second"))
			if strings.HasPrefix(c.name, "Proxy") {
				last.backend, last.second = respond(c.response).then(respond(ok("second"))...), nil
			}
		}
	}
	return cases
}

// gzipCases are about compression, which the gateway asks for where the client
// says nothing of it.
func gzipCases() (cases []wireCase) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte(text(10_000)))
	_ = z.Close()
	packed := b.String()
	encoded := "Content-Encoding: gzip"
	for _, c := range []struct {
		name     string
		fields   []string // of the request
		response string
	}{
		{"unasked", nil, ok(packed, encoded)},
		{"unasked, chunked", nil, chunkedOK(encoded) + chunks(packed[:100], packed[100:])},
		{"unasked, in capitals", nil, ok(packed, "Content-Encoding: GZIP")},
		{"unasked, with a trailer", nil, chunkedOK(encoded, "Trailer: X-T") + fmt.Sprintf("%x\r\n%s\r\n0\r\nX-T: b\r\n\r\n", len(packed), packed)},
		{"asked for", []string{"Accept-Encoding: gzip"}, ok(packed, encoded)},
		{"among others", []string{"Accept-Encoding: br, gzip"}, ok(packed, encoded)},
		{"refused", []string{"Accept-Encoding: identity"}, ok(packed, encoded)},
		{"empty Accept-Encoding", []string{"Accept-Encoding: "}, ok(packed, encoded)},
		{"not used", nil, ok("hello")},
		{"with a range", []string{"Range: bytes=0-4"}, message("HTTP/1.1 206 Partial Content", "Content-Range: bytes 0-4/10", "Content-Length: 5") + "hello"},
		{"cut short", nil, ok(packed[:len(packed)-20], encoded)},
		{"cut short, asked for", []string{"Accept-Encoding: gzip"}, ok(packed[:len(packed)-20], encoded)},
		{"that is none", nil, ok("hello", encoded)},
		{"that is none, long", nil, ok(text(1000), encoded)},
		{"empty", nil, ok("", encoded)},
		{"with octets behind", nil, ok(packed+"hello", encoded)},
		{"twice", nil, ok(packed+packed, encoded)},
		{"with a wrong checksum", nil, ok(packed[:len(packed)-8]+"12345678", encoded)},
		{"another encoding", nil, ok("hello", "Content-Encoding: br")},
	} {
		cases = append(cases, wireCase{name: "gzip " + c.name, client: script{ask(request("GET /", c.fields...))}, backend: respond(c.response)})
	}
	return append(cases,
		wireCase{name: "gzip of HEAD", client: script{ask(request("HEAD /"))}, backend: respond(lengthOK(len(packed), encoded))},
		wireCase{name: "gzip of a POST", client: script{ask(post("hello"))}, backend: respond(ok(packed, encoded))},
		wireCase{name: "gzip and closed", backend: respond(lengthOK(len(packed), encoded) + packed[:len(packed)/2]).then(hangUp)},
		wireCase{name: "gzip until the end", backend: respond(message("HTTP/1.1 200 OK", encoded) + packed).then(hangUp)},
		wireCase{name: "gzip of 304", backend: respond(message("HTTP/1.1 304 Not Modified", encoded))},
	)
}

// abortCases are clients that leave.
func abortCases() (cases []wireCase) {
	body := request("POST /", "Content-Length: 10")
	chunked := request("POST /", "Transfer-Encoding: chunked")
	for _, end := range []struct {
		name string
		step step
	}{{"leaves", hangUp}, {"resets", reset}} {
		cases = append(cases,
			wireCase{name: "the client " + end.name + " before the response", client: script{send(request("GET /")), await("taken"), end.step},
				backend: script{take, tell("taken"), gone}},
			wireCase{name: "the client " + end.name + " before the response to a POST", client: script{send(post("hello")), await("taken"), end.step},
				backend: script{take, tell("taken"), gone}},
			wireCase{name: "the client " + end.name + " in the body of the response", client: script{send(request("GET /")), readResponse, readSome(5), end.step},
				backend: script{take, send(chunkedOK() + "5\r\nhello\r\n"), gone}},
			wireCase{name: "the client " + end.name + " in a long body", client: script{send(request("GET /")), readResponse, readSome(10_000), end.step},
				backend: script{take, send(lengthOK(1_000_000) + text(100_000)), gone}},
			wireCase{name: "the client " + end.name + " in its body", client: script{send(body + "hello"), await("hello"), end.step},
				backend: script{readHead, readSome(5), tell("hello"), gone}},
			wireCase{name: "the client " + end.name + " in its chunks", client: script{send(chunked + "5\r\nhello\r\n"), await("hello"), end.step},
				backend: script{readHead, readSome(5), tell("hello"), gone}},
			wireCase{name: "the client " + end.name + " after 103", client: script{send(request("GET /")), readInterim, end.step},
				backend: script{take, send(message("HTTP/1.1 103 Early Hints", "X-A: b")), gone}},
		)
	}
	return append(cases,
		wireCase{name: "the client ends what it sends", client: script{send(request("GET /")), await("taken"), shut, readResponse, readBody},
			backend: script{take, tell("taken"), gone}},
		wireCase{name: "the client's chunks are no chunks", client: script{send(chunked + "5\r\nhello\r\n"), await("hello"), send("xyz\r\n"), readResponse, readBody},
			backend: script{readHead, readSome(5), tell("hello"), gone},
			differs: bodyUnread, want: []string{"the client", "HTTP/1.1 502 Bad Gateway", "Connection: close", "the connection ends"}},
	)
}

// unaskedCases are backends that say more than they were asked. Whatever it is,
// the next request gets its own response.
func unaskedCases() (cases []wireCase) {
	evil := ok("evil")
	last := []string{"another request", "HTTP/1.1 200 OK", `body "after"`}
	hello := slices.Concat([]string{"the client", "HTTP/1.1 200 OK", `body "hello"`, "connection 2 of the backend"}, last)
	for _, c := range []struct {
		name   string
		method string
		now    string // the response and what is sent with it
		later  string // what is sent when the client has the response
		want   []string
	}{
		{"a second response", "GET", ok("hello") + evil, "", hello},
		{"a second response, chunked", "GET", chunkedOK() + chunks("hello") + evil, "", hello},
		{"a second response later", "GET", ok("hello"), evil, hello},
		{"part of a response later", "GET", ok("hello"), evil[:20], hello},
		{"one octet later", "GET", ok("hello"), "H", hello},
		{"100 later", "GET", ok("hello"), message("HTTP/1.1 100 Continue"), hello},
		{"408 later", "GET", ok("hello"), message("HTTP/1.1 408 Request Timeout", "Connection: close"), hello},
		{"an empty line", "GET", ok("hello") + "\r\n", "", hello},
		{"a body longer than its length", "GET", lengthOK(5) + "hello world", "", hello},
		{"a second end of chunks", "GET", chunkedOK() + chunks("hello") + "0\r\n\r\n", "", hello},
		{"a body for HEAD", "HEAD", ok("hello"), "", hello[3:]},
		{"a chunked body for HEAD", "HEAD", chunkedOK() + chunks("hello"), "", hello[3:]},
		{"a body of 204", "GET", message("HTTP/1.1 204 No Content", "Content-Length: 5") + "hello", "", hello[3:]},
		{"a response after 304", "GET", message("HTTP/1.1 304 Not Modified", "Content-Length: 5") + evil, "", hello[3:]},
		{"a response after one to POST", "POST", ok("hello") + evil, "", hello},
	} {
		backend := respond(c.now)
		if c.later != "" {
			backend = backend.then(await("read"), send(c.later))
		}
		cases = append(cases, wireCase{name: "unasked " + c.name, client: script{ask(request(c.method + " /")), tell("read")}, backend: backend,
			differs: unaskedAnswer, want: c.want})
	}
	return append(cases,
		wireCase{name: "unasked a second response for the next request", client: script{ask(request("GET /")), tell("read"), await("sent"), ask(request("GET /2"))},
			backend: script{take, send(ok("hello")), await("read"), send(evil), tell("sent")}, second: respond(ok("world")),
			differs: unaskedAnswer, want: []string{"the client", `body "hello"`, `body "world"`, "connection 2 of the backend", "GET /2 HTTP/1.1", `body "after"`}},
	)
}

// methodCases are about methods and bodies.
func methodCases() (cases []wireCase) {
	many := strings.Split(text(2000), " ")[:300]
	add := func(method, what string, fields []string, body string) {
		cases = append(cases, wireCase{name: method + ", " + what, client: script{ask(request(method+" /path?query", fields...) + body)},
			backend: respond(message("HTTP/1.1 204 No Content"))})
	}
	chunked := []string{"Transfer-Encoding: chunked"}
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "M-SEARCH", "get", "ODD!#$%&'*+-.^_`|~9"} {
		add(method, "no body", nil, "")
		add(method, "length 0", []string{"Content-Length: 0"}, "")
		add(method, "1 octet", []string{"Content-Length: 1"}, "x")
		add(method, "10 kB", []string{"Content-Length: 10000"}, text(10_000))
		add(method, "no chunk", chunked, chunks())
		add(method, "one chunk", chunked, chunks("hello"))
		add(method, "many chunks", chunked, chunks(many...))
	}
	for _, method := range []string{"GET", "POST", "PUT"} {
		add(method, "1 MB", []string{"Content-Length: 1000000"}, text(1_000_000))
		add(method, "1 MB chunked", chunked, chunks(text(500_000), text(500_000)))
	}
	return append(cases,
		wireCase{name: "CONNECT", differs: noConnect, client: script{send(message("CONNECT wire.example:80 HTTP/1.1", "Host: wire.example:80", "X-Target: $TARGET")), readResponse},
			backend: respond(ok("")), want: []string{"the client", "HTTP/1.1 400 Bad Request", "another request", `body "after"`}},
	)
}

// reuseCases are about second requests over one connection.
func reuseCases() (cases []wireCase) {
	key := "Idempotency-Key: 1"
	for _, c := range []struct{ name, request string }{
		{"GET", request("GET /2")},
		{"GET with a body", request("GET /2", "Content-Length: 5") + "hello"},
		{"HEAD", request("HEAD /2")},
		{"OPTIONS", request("OPTIONS /2")},
		{"TRACE", request("TRACE /2")},
		{"DELETE", request("DELETE /2")},
		{"POST", post("hello")},
		{"POST without a body", request("POST /2", "Content-Length: 0")},
		{"POST without a body, with a key", request("POST /2", "Content-Length: 0", key)},
		{"POST with a key", post("hello", key)},
		{"PUT, chunked", request("PUT /2", "Transfer-Encoding: chunked") + chunks("hello")},
	} {
		answered := message("HTTP/1.1 204 No Content")
		both := script{ask(request("GET /1")), ask(c.request)}
		var differs difference
		var want []string
		if c.name == "GET with a body" {
			differs, want = bodyOfGET, []string{"the client", "HTTP/1.1 204 No Content", "HTTP/1.1 204 No Content", "connection 1 of the backend",
				"GET /2 HTTP/1.1", `body "hello"`, "connection 2 of the backend", "GET /2 HTTP/1.1", `body "hello"`, "another request"}
		}
		cases = append(cases,
			wireCase{name: "second " + c.name, client: both, backend: respond(answered).then(respond(answered)...)},
			wireCase{name: "second " + c.name + ", closed", client: both, backend: respond(answered).then(take, hangUp), second: respond(answered), differs: differs, want: want},
			wireCase{name: "second " + c.name + ", reset", client: both, backend: respond(answered).then(take, reset), second: respond(answered), differs: differs, want: want},
			wireCase{name: "second " + c.name + ", reset in the response", client: both,
				backend: respond(answered).then(take, send("HTTP/1.1 2"), reset), second: respond(answered), differs: differs, want: want},
			wireCase{name: "second " + c.name + ", closed before", client: script{ask(request("GET /1")), tell("read"), await("closed"), ask(c.request)},
				backend: respond(answered).then(await("read"), hangUp, tell("closed")), second: respond(answered),
				differs: closedWhenIdle, want: []string{"the client", "HTTP/1.1 204 No Content", "HTTP/1.1 204 No Content", "connection 1 of the backend",
					"connection 2 of the backend", "another request"}},
		)
	}
	return append(cases,
		wireCase{name: "ten requests", client: slices.Concat(slices.Repeat(script{ask(request("GET /"))}, 10)), backend: slices.Repeat(respond(ok("hello")), 10)},
		wireCase{name: "two requests at once", client: script{send(request("GET /1") + request("GET /2")), readResponse, readBody, readResponse, readBody},
			backend: respond(ok("hello")).then(respond(ok("world"))...)},
		wireCase{name: "second after a 502", client: script{ask(post("hello")), ask(post("world"))}, backend: script{take, reset}, second: respond(ok("hello"))},
	)
}

// requestCases are about what the backend gets to see of a request.
func requestCases() (cases []wireCase) {
	for _, c := range []struct{ name, request string }{
		{"User-Agent", request("GET /", "User-Agent: odd/1")},
		{"empty User-Agent", request("GET /", "User-Agent: ")},
		{"hop-by-hop fields", request("GET /", "Connection: X-Hop, keep-alive", "X-Hop: 1", "Keep-Alive: 5", "Proxy-Connection: a", "Proxy-Authorization: b", "Te: deflate")},
		{"TE", request("GET /", "TE: trailers, deflate")},
		{"close", request("GET /", "Connection: close")},
		{"fields twice", request("GET /", "X-A: 1", "X-B: 2", "X-A: 3")},
		{"cookies", request("GET /", "Cookie: a=1", "Cookie: b=2")},
		{"no value", request("GET /", "X-A:")},
		{"name in small letters", request("GET /", "x-a: b")},
		{"a long field", request("GET /", "X-A: "+text(20_000))},
		{"value that is not ASCII", request("GET /", "X-A: für \xff")},
		{"own Via and Forwarded", request("GET /", "Via: 1.0 x", "Forwarded: for=1.2.3.4", "X-Forwarded-For: 1.2.3.4")},
		{"odd path", request("GET /a//b/../c%2Fd/%C3%A4;p=1?q=%20+&r")},
		{"path in UTF-8", request("GET /ä")},
		{"query alone", request("GET /?")},
		{"asterisk", request("OPTIONS *")},
		{"whole URL", request("GET http://$HOST/path?query")},
		{"HTTP/1.0", message("GET / HTTP/1.0", "Host: $HOST", "X-Target: $TARGET")},
		{"HTTP/1.0 that stays open", message("GET / HTTP/1.0", "Host: $HOST", "X-Target: $TARGET", "Connection: keep-alive")},
		{"Early-Data", request("GET /", "Early-Data: 1")},
		{"Content-Type without a body", request("POST /", "Content-Type: text/plain", "Content-Length: 0")},
		{"length and chunked", request("POST /", "Content-Length: 3", "Transfer-Encoding: chunked") + chunks("hello")},
	} {
		cases = append(cases, wireCase{name: "request " + c.name, client: script{ask(c.request)}, backend: respond(ok("hello"))})
	}
	return append(cases,
		wireCase{name: "request of HTTP/1.0, chunked response", client: script{ask(message("GET / HTTP/1.0", "Host: $HOST", "X-Target: $TARGET"))},
			backend: respond(chunkedOK() + chunks("hello"))},
		wireCase{name: "request one by one", client: script{drip(post("hello")), readResponse, readBody}, backend: respond(ok("world"))},
	)
}
