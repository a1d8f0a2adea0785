// Package config compiles Envoy v3 resources into the immutable structs that the data plane works
// from, and matches routes and filter chains in them. It refuses what it cannot honour by the path
// of the field. It knows nothing of sockets, goroutines or where resources come from.
package config

import (
	"time"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/resource"
)

// Config is one complete, consistent configuration. Immutable. Objects of resources that did not
// change are the same (by pointer) from one Config to the next; that is why a Cluster does not
// point to its endpoints, nor an HTTPConnectionManager to its RDS route table: look them up here.
type Config struct {
	Listeners []*Listener            // by name
	Clusters  map[string]*Cluster    // by name
	Endpoints map[string]*Assignment // EDS, by EDS service name
	Routes    map[string]*RouteTable // RDS, by route configuration name
	Secrets   map[string]*Secret     // static or over ADS, by name

	Sources []Source // the resources it was made of, for dumps
}

// Source is a resource that a Config was made of.
type Source struct {
	Type     string // type URL
	Resource *resource.Resource
	Version  string // as the server gave it; empty for static resources
	Static   bool   // from the bootstrap
	Updated  time.Time
}

// Assignment returns the endpoints of c, or nil if they have not come or do not exist (and for
// ORIGINAL_DST clusters).
func (c *Config) Assignment(cl *Cluster) *Assignment {
	if cl.Type == EDS {
		return c.Endpoints[cl.EDSName]
	}
	return cl.Assignment
}

// RouteTable returns the route table of h: inline, by RDS, or nil if the named one does not exist.
func (c *Config) RouteTable(h *HTTPConnectionManager) *RouteTable {
	if h.RDS != "" {
		return c.Routes[h.RDS]
	}
	return h.Routes
}

// AccessLog is one access logger: a sink and a format, and which entries it takes.
type AccessLog struct {
	Path   string // a file; "/dev/stdout" and "/dev/stderr" for the process's own
	Format *accesslog.Format
	Filter *LogFilter // nil: takes all
}

// LogFilter says which entries are logged: those for which all that is set holds.
type LogFilter struct {
	AnyFlag  bool            // some response flag
	Flags    accesslog.Flags // if not 0: one of these
	Status   *Comparison
	Duration *Comparison // milliseconds
	Header   *HeaderMatcher
	Fraction *Fraction // a share of the entries
	And      []*LogFilter
	Or       []*LogFilter // if not empty: one of these
}

// CompareOp is the operator of a Comparison.
type CompareOp uint8

// Operators of comparisons.
const (
	Equal CompareOp = iota
	GreaterEqual
	LessEqual
	NotEqual
)

// Comparison holds for x if "x Op Value".
type Comparison struct {
	Op    CompareOp
	Value uint64
}

// Holds reports whether x satisfies c.
func (c Comparison) Holds(x uint64) bool {
	switch c.Op {
	case GreaterEqual:
		return x >= c.Value
	case LessEqual:
		return x <= c.Value
	case NotEqual:
		return x != c.Value
	}
	return x == c.Value
}

// Fraction is a share of all: Numerator out of Denominator (100, 10,000 or 1,000,000).
type Fraction struct{ Numerator, Denominator uint32 }

// Takes reports whether the random number falls into the fraction.
func (f Fraction) Takes(random uint64) bool {
	return uint32(random%uint64(f.Denominator)) < f.Numerator
}

// Label is a key and a value of endpoint metadata.
type Label struct{ Key, Value string }
