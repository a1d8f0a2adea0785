package diagnose

import (
	"crypto/x509"
	"encoding/base64"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/certs"
)

// Way is what a proxy's configuration says about a request: the names that it goes by.
type Way struct {
	Listener    string
	RouteConfig string // empty for TCP
	VirtualHost string
	Route       string // route name
	Cluster     string
}

// Way follows a request for an authority and path that the caller sends to an address (HOST:PORT)
// through a sidecar's outbound listeners, or a gateway's. Route is the first whose path matches;
// other conditions of routes are not looked at.
func (d *Dump) Way(address, authority, path string) (w Way) {
	listener := d.listenerFor(address)
	if listener == nil {
		return w
	}
	w.Listener = str(listener, "name")
	var config any
	for _, c := range append(slices.Clone(list(listener, "filter_chains")), at(listener, "default_filter_chain")) {
		if p := str(c, "filter_chain_match", "destination_port"); p != "" && !strings.HasSuffix(address, ":"+p) {
			continue
		}
		dest, _ := destination(c)
		if name, ok := strings.CutPrefix(dest, "Route: "); ok {
			for _, rc := range d.Routes {
				if str(rc, "name") == name {
					w.RouteConfig, config = name, rc
				}
			}
		}
		if w.RouteConfig != "" {
			break
		}
		if name, ok := strings.CutPrefix(dest, "Cluster: "); ok && w.Cluster == "" {
			w.Cluster = name
		}
	}
	if config == nil {
		return w
	}
	w.Cluster = ""
	vh := virtualHost(config, authority)
	w.VirtualHost = str(vh, "name")
	for _, r := range list(vh, "routes") {
		if m := at(r, "match"); pathMatches(m, path) {
			w.Route, w.Cluster = str(r, "name"), str(r, "route", "cluster")
			if cs := list(r, "route", "weighted_clusters", "clusters"); len(cs) > 0 {
				w.Cluster = str(cs[0], "name")
			}
			break
		}
	}
	return w
}

// listenerFor finds the listener of an original destination: its own, the port's, or the one that
// takes all that is redirected.
func (d *Dump) listenerFor(address string) any {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil
	}
	var best any
	rank := 0
	for _, l := range d.Listeners {
		a, p := str(l, "address", "socket_address", "address"), str(l, "address", "socket_address", "port_value")
		r := 0
		switch {
		case p == port && a == host:
			r = 3
		case p == port && (a == "0.0.0.0" || a == "::"):
			r = 2
		case str(l, "name") == "virtualOutbound":
			r = 1
		}
		if r > rank {
			best, rank = l, r
		}
	}
	return best
}

// virtualHost picks the one with the most exact domain for an authority.
func virtualHost(config any, authority string) any {
	authority = strings.ToLower(authority)
	bare := authority
	if _, port, err := net.SplitHostPort(authority); err == nil {
		bare = strings.TrimSuffix(authority, ":"+port) // the brackets of an address stay
	}
	var best any
	rank := -1
	for _, vh := range list(config, "virtual_hosts") {
		for _, dom := range strs(vh, "domains") {
			r := -1
			switch suffix, wild := strings.CutPrefix(dom, "*"); {
			case dom == "*":
				r = 0
			case dom == authority || dom == bare:
				r = 1 << 20
			case wild && (strings.HasSuffix(authority, suffix) || strings.HasSuffix(bare, suffix)):
				r = len(suffix)
			}
			if r > rank {
				best, rank = vh, r
			}
		}
	}
	return best
}

func pathMatches(m any, path string) bool {
	if i := strings.IndexAny(path, "?#"); i >= 0 {
		path = path[:i]
	}
	switch {
	case str(m, "path") != "":
		return path == str(m, "path")
	case str(m, "path_separated_prefix") != "":
		p := str(m, "path_separated_prefix")
		return path == p || strings.HasPrefix(path, p+"/")
	case str(m, "prefix") != "":
		return strings.HasPrefix(path, str(m, "prefix"))
	}
	return true // a regular expression is not tried
}

// LogsAccess reports whether any listener writes an access log.
func (d *Dump) LogsAccess() bool {
	return slices.ContainsFunc(d.Listeners, func(l any) bool {
		if len(list(l, "access_log")) > 0 {
			return true
		}
		for _, c := range append(slices.Clone(list(l, "filter_chains")), at(l, "default_filter_chain")) {
			for _, f := range list(c, "filters") {
				if len(list(f, "typed_config", "access_log")) > 0 {
					return true
				}
			}
		}
		return false
	})
}

// Certificate is the one that a proxy shows to others.
type Certificate struct {
	Name     string // spiffe://…
	NotAfter time.Time
	Chain    []*x509.Certificate // leaf first
}

// Identity returns the workload certificate of a dump; zero if there is none.
func (d *Dump) Identity() (c Certificate) {
	for _, s := range d.Secrets {
		chain := str(s.Body, "tls_certificate", "certificate_chain", "inline_bytes")
		if s.Name != "default" || chain == "" {
			continue
		}
		c.Chain = certificates(chain)
		if len(c.Chain) > 0 {
			c.NotAfter = c.Chain[0].NotAfter
			if len(c.Chain[0].URIs) > 0 {
				c.Name = c.Chain[0].URIs[0].String()
			}
		}
	}
	return c
}

// Roots returns the certificates that a proxy trusts.
func (d *Dump) Roots() (roots []*x509.Certificate) {
	for _, s := range d.Secrets {
		if s.Name == "ROOTCA" {
			roots = append(roots, certificates(str(s.Body, "validation_context", "trusted_ca", "inline_bytes"))...)
		}
	}
	return roots
}

func certificates(encoded string) (out []*x509.Certificate) {
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil
	}
	out, _ = certs.Certificates(raw) // a dump shows what it can
	return out
}
