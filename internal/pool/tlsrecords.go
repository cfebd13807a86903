package pool

// tlsRecords follows the records of TLS in what is read, to know where one ends.
type tlsRecords struct {
	on     bool
	left   int // of the record
	header [5]byte
	got    int // of the header
}

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
