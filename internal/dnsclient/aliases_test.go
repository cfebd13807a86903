package dnsclient

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"caddytarget/internal/testlab"
)

// TestBrokenAliases has replies that the standard does not allow (RFC 1034,
// section 3.6.2), and expects what other clients make of them: the first chain
// that ends in addresses counts, else the addresses that a name along it has
// itself. Records that are not on a chain are not used.
func TestBrokenAliases(t *testing.T) {
	for _, test := range brokenAliasCases() {
		t.Run(test.name, func(t *testing.T) {
			s := newScript(t, func(q *testlab.Query) {
				records := test.records
				if q.N > 1 {
					records = test.next
				}
				m := q.Answer(records...)
				m.Rcode = test.rcode
				if test.soa || q.N > 1 {
					m.Ns = testlab.Records(soa)
				}
				q.Reply(m)
			}, nil)
			got, ttl, err := newClient(t, Config{}, s).Lookup(t.Context(), "a.example", dns.TypeA)
			switch {
			case err != nil:
				if !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want %s", err, test.want)
				}
			case !slices.Equal(got, addrs("192.0.2.1")) || got[0].String() != test.want || ttl != test.ttl:
				t.Errorf("got %v for %s, want %s for %s", got, ttl, test.want, test.ttl)
			}
			asked := ""
			if s.Count(false) > 1 {
				asked = s.Queries()[1].Question[0].Name
			}
			if asked != test.asks || s.Count(false) > 2 {
				t.Errorf("asked for %q, want %q; %d queries", asked, test.asks, s.Count(false))
			}
		})
	}
}

// brokenAliasCase is a lookup of a.example.
type brokenAliasCase struct {
	name    string
	records []string
	rcode   int
	soa     bool
	next    []string // the records of the reply to the second question, if one is asked

	want string // an address, or part of an error
	ttl  time.Duration
	asks string // the second question
}

// brokenAliasCases has the cases of TestBrokenAliases. It is long because its table is.
func brokenAliasCases() []brokenAliasCase {
	const right, wrong = " 60 IN A 192.0.2.1", " 60 IN A 203.0.113.66"
	many := func(n int) (records []string) {
		for i := range n {
			records = append(records, fmt.Sprintf("a.example. 60 IN CNAME c%d.example.", i))
		}
		return records
	}
	return []brokenAliasCase{
		{
			name: "two aliases, the first has addresses",
			records: []string{
				"a.example. 50 IN CNAME b.example.", "a.example. 10 IN CNAME c.example.", "b.example." + right, "c.example." + wrong,
			},
			want: "192.0.2.1", ttl: 50 * time.Second,
		},
		{
			name:    "two aliases, the second has addresses",
			records: []string{"a.example. 10 IN CNAME b.example.", "a.example. 50 IN CNAME c.example.", "c.example." + right},
			want:    "192.0.2.1", ttl: 50 * time.Second,
		},
		{
			name: "two aliases, the second in two steps",
			records: []string{
				"c.example. 40 IN CNAME d.example.", "d.example." + right, "a.example. 50 IN CNAME b.example.", "a.example. 50 IN CNAME c.example.",
			},
			want: "192.0.2.1", ttl: 40 * time.Second,
		},
		{
			name: "two aliases further on",
			records: []string{
				"a.example. 50 IN CNAME b.example.", "b.example. 40 IN CNAME nowhere.example.", "b.example. 45 IN CNAME c.example.", "c.example." + right,
			},
			want: "192.0.2.1", ttl: 45 * time.Second,
		},
		{
			name:    "two aliases, the first leads in a circle",
			records: []string{"a.example. 50 IN CNAME a.example.", "a.example. 50 IN CNAME c.example.", "c.example." + right},
			want:    "192.0.2.1", ttl: 50 * time.Second,
		},
		{
			name:    "two aliases, none has addresses",
			records: []string{"a.example. 50 IN CNAME b.example.", "a.example. 50 IN CNAME c.example."},
			next:    []string{"b.example." + right},
			want:    "192.0.2.1", ttl: 50 * time.Second, asks: "b.example.",
		},
		{
			name:    "two aliases of nothing, with SOA",
			records: []string{"a.example. 50 IN CNAME b.example.", "a.example. 50 IN CNAME c.example."}, soa: true,
			want: "replied that there is none",
		},
		{
			name:    "an alias that leads nowhere, and an address",
			records: []string{"a.example. 10 IN CNAME nowhere.example.", "a.example." + right},
			want:    "192.0.2.1", ttl: time.Minute,
		},
		{
			name:    "an address, and an alias that leads nowhere, with SOA",
			records: []string{"a.example." + right, "a.example. 10 IN CNAME nowhere.example."}, soa: true,
			want: "192.0.2.1", ttl: time.Minute,
		},
		{
			name:    "the same further on",
			records: []string{"a.example. 30 IN CNAME b.example.", "b.example. 10 IN CNAME nowhere.example.", "b.example." + right},
			want:    "192.0.2.1", ttl: 30 * time.Second,
		},
		{
			name: "the question's owner before those that follow",
			records: []string{
				"a.example. 30 IN CNAME b.example.", "b.example. 10 IN CNAME nowhere.example.", "b.example." + wrong, "a.example." + right,
			},
			want: "192.0.2.1", ttl: time.Minute,
		},
		{
			name:    "a chain before the question's owner",
			records: []string{"a.example." + wrong, "a.example. 30 IN CNAME nowhere.example.", "a.example. 30 IN CNAME b.example.", "b.example." + right},
			want:    "192.0.2.1", ttl: 30 * time.Second,
		},
		{
			name:    "an address that is none",
			records: []string{"a.example. 10 IN CNAME b.example.", `a.example. 60 IN TYPE1 \# 0`},
			next:    []string{"b.example." + right},
			want:    "192.0.2.1", ttl: 10 * time.Second, asks: "b.example.",
		},
		{
			name:    "nothing that is on no chain",
			records: []string{"a.example. 10 IN CNAME b.example.", "a.example. 10 IN CNAME c.example.", "d.example." + wrong, "e.example. 60 IN CNAME a.example."},
			next:    []string{"d.example." + wrong},
			want:    "replied that there is none", asks: "b.example.",
		},
		{
			name:    "circles only",
			records: []string{"a.example. 10 IN CNAME b.example.", "a.example. 10 IN CNAME a.example.", "b.example. 10 IN CNAME a.example.", "a.example." + wrong},
			want:    "in a circle or too far",
		},
		{
			name:    "NXDOMAIN with an alias and an address",
			records: []string{"a.example. 10 IN CNAME b.example.", "a.example." + wrong}, rcode: dns.RcodeNameError, soa: true,
			want: "replied NXDOMAIN",
		},
		{
			name:    "as many aliases as are visited, the last one has addresses",
			records: append(many(maxOwners-1), fmt.Sprintf("c%d.example.", maxOwners-2)+right),
			want:    "192.0.2.1", ttl: time.Minute,
		},
		{
			name:    "too many aliases",
			records: append(many(maxOwners), fmt.Sprintf("c%d.example.", maxOwners-1)+wrong),
			want:    "in a circle or too far",
		},
	}
}

// TestBrokenAliasOfService: the same holds for the records of a service.
func TestBrokenAliasOfService(t *testing.T) {
	s := newScript(t, func(q *testlab.Query) {
		q.Reply(q.Answer("_http._tcp.example. 60 IN CNAME b.example.", "_http._tcp.example. 50 IN CNAME c.example.",
			"c.example. 60 IN SRV 1 1 80 a.example."))
	}, nil)
	got, ttl, err := newClient(t, Config{}, s).LookupSRV(t.Context(), "_http._tcp.example")
	if err != nil || len(got) != 1 || got[0].Target != "a.example" || ttl != 50*time.Second {
		t.Errorf("got %v for %s, %v; want a.example for 50s", got, ttl, err)
	}
}
