package pool

// tlsRecords follows the records of TLS in the octets that are read, to know where one
// ends: a connection with half a record has something to be read.
type tlsRecords struct {
	on     bool
	left   int // octets of the record that are still to come
	header [5]byte
	got    int // octets of the header that have come
}

// follow is called with each part of what is read.
func (r *tlsRecords) follow(p []byte) {
	for r.on && len(p) > 0 {
		if r.left > 0 {
			n := min(r.left, len(p))
			r.left, p = r.left-n, p[n:]
			continue
		}
		n := copy(r.header[r.got:], p)
		r.got, p = r.got+n, p[n:]
		if r.got == len(r.header) {
			r.got, r.left = 0, int(r.header[3])<<8|int(r.header[4])
		}
	}
}

// complete reports whether what was read ends where a record does.
func (r *tlsRecords) complete() bool { return r.left == 0 && r.got == 0 }
