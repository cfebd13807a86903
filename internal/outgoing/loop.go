package outgoing

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
)

// LoopHeader names the header field by which a request that comes back is
// recognized (RFC 8586). Its value holds an HMAC under a key that only this
// process has. A client that sends it on harms only its own request.
const LoopHeader = "Cdn-Loop"

// LoopID is what this process adds to LoopHeader.
var LoopID = newLoopID()

func newLoopID() string {
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	mac := hmac.New(sha256.New, key[:])
	mac.Write([]byte(LoopHeader))
	return "caddytarget; id=" + hex.EncodeToString(mac.Sum(nil)[:16])
}

// HasLoopID reports whether a request has come through this process before.
func HasLoopID(header http.Header) bool {
	for _, value := range header[LoopHeader] {
		if strings.Contains(value, LoopID) {
			return true
		}
	}
	return false
}

func addLoopID(header http.Header) {
	if !slices.Contains(header[LoopHeader], LoopID) {
		header[LoopHeader] = append(header[LoopHeader], LoopID)
	}
}
