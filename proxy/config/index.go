package config

type chainIndex struct{}

type domainIndex struct{}

// Match returns the filter chain for a connection: the most specific by destination port, destination
// prefix, server name, transport protocol, application protocol, then source, without going back
// (Envoy's order); else Default, which may be nil: close.
func (l *Listener) Match(c *Conn) *FilterChain { return l.Default }

// VirtualHost returns the virtual host for a Host header: exact, then longest suffix wildcard, longest
// prefix wildcard, then "*"; nil if there is none.
func (t *RouteTable) VirtualHost(host string) *VirtualHost { return nil }

// Match returns the route for a request, or nil (404 NR). random decides fractions.
func (t *RouteTable) Match(r Request, random uint64) *Route { return nil }
