package admin

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"caddytarget/internal/explain"
)

// Site is one target handler of the running configuration.
type Site struct {
	Name   string   `json:"site"`            // a host that no other one has, or else Place
	Place  string   `json:"place"`           // in the configuration, without what all have in common
	Hosts  []string `json:"hosts,omitempty"` // that its routes match; none: any
	Listen []string `json:"listen"`          // the addresses of its server
	URL    string   `json:"url"`             // the template

	// Explain explains how the site would treat a request.
	Explain func(*explain.Input) *explain.Report `json:"-"`
}

// isCalled reports whether a name is one of the site's: a host, its place in the
// configuration or an address on which its server listens.
func (s *Site) isCalled(name string) bool {
	isName := func(other string) bool { return strings.EqualFold(other, name) }
	return isName(s.Place) || slices.ContainsFunc(s.Hosts, isName) || slices.ContainsFunc(s.Listen, isName)
}

// selectSite returns the only one of some sites that has a name; empty: the only one
// there is.
func selectSite(sites []*Site, name string) (*Site, error) {
	if len(sites) == 0 {
		return nil, errorf(http.StatusNotFound, "no site has a target handler")
	}
	found := sites
	if name != "" {
		found = slices.DeleteFunc(slices.Clone(sites), func(s *Site) bool { return !s.isCalled(name) })
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0:
		return nil, errorf(http.StatusNotFound, "unknown site %q: expecting %s", name, siteNames(sites))
	case name != "":
		return nil, errorf(http.StatusBadRequest, "site %q is several: expecting %s", name, siteNames(found))
	}
	return nil, errorf(http.StatusBadRequest, "which site? expecting the parameter site, one of %s", siteNames(sites))
}

// siteNames lists the first names of some sites.
func siteNames(sites []*Site) string {
	const shown = 8
	names := make([]string, min(shown, len(sites)))
	for i := range names {
		names[i] = sites[i].Name
	}
	list := strings.Join(names, ", ")
	if more := len(sites) - shown; more > 0 {
		list += fmt.Sprintf(" (and %d more, which %s shows)", more, Path)
	}
	return list
}

// getExplanation serves /target/explain: how a site would treat a request.
func (a *API) getExplanation(r *http.Request, p params) (any, error) {
	in, err := explain.NewInput(p, r.URL.Query()["header"])
	if err != nil {
		return nil, errorf(http.StatusBadRequest, "%v", err)
	}
	site, err := selectSite(a.Sites(), p["site"])
	if err != nil {
		return nil, err
	}
	in.Request = in.Request.WithContext(r.Context())
	in.Request.RemoteAddr = r.RemoteAddr
	return site.Explain(in), nil
}
