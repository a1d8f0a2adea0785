package config

import (
	"regexp"
	"time"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
)

// RouteTable is a route configuration. Immutable.
type RouteTable struct {
	Name         string
	VirtualHosts []*VirtualHost
	IgnorePort   bool // of Host, when matching domains
	// MaxDirectBody bounds bodies of direct responses; default 4096 bytes.
	MaxDirectBody uint32

	domains domainIndex
}

// VirtualHost is a set of domains with routes. Immutable.
type VirtualHost struct {
	Name                 string
	Domains              []string
	Routes               []*Route
	AttemptCount         bool // x-envoy-attempt-count to the upstream
	AttemptCountResponse bool
	RequireTLS           TLSRequirement
}

// TLSRequirement says which requests are redirected to https.
type TLSRequirement uint8

// TLS requirements of virtual hosts.
const (
	TLSNone TLSRequirement = iota
	TLSExternalOnly
	TLSAll
)

// Route is a match and what is done with its requests. Exactly one of Action, Redirect and Direct is
// set. Immutable.
type Route struct {
	Name        string
	VirtualHost *VirtualHost
	Match       RouteMatch

	Action   *RouteAction
	Redirect *Redirect
	Direct   *DirectResponse

	Decorator string // operation; sent as x-envoy-decorator-operation; empty: none
	// DecoratorPropagate is false if the decorator must not go upstream.
	DecoratorPropagate bool

	// RequestHeaders and ResponseHeaders are applied in order (route, virtual host, table, or as
	// most_specific_header_mutations_wins says).
	RequestHeaders  []HeaderMutation
	ResponseHeaders []HeaderMutation

	// Filters is the configuration of HTTP filters for this route, by filter name, the most specific
	// of table, virtual host and route; may be nil. A nil value disables the filter.
	Filters     map[string]FilterConfig
	BufferLimit uint32 // per_request_buffer_limit_bytes; 0: the listener's
}

// PathKind is how a path is matched.
type PathKind uint8

// Path matches.
const (
	PathPrefix PathKind = iota
	PathExact
	PathRegex
	PathSeparatedPrefix // the path or a path below it
	PathConnect         // CONNECT requests
)

// RouteMatch says which requests a route takes.
type RouteMatch struct {
	Kind       PathKind
	Path       string
	Regex      *regexp.Regexp
	IgnoreCase bool
	Headers    []HeaderMatcher
	Query      []QueryMatcher
	Cookies    []QueryMatcher
	GRPC       bool
	Fraction   *Fraction
	// TLSPresented and TLSValidated restrict by the client's certificate, if not nil.
	TLSPresented *bool
	TLSValidated *bool
}

// WeightedCluster is one of the clusters that share a route's requests.
type WeightedCluster struct {
	Name            string
	Weight          uint32
	HostRewrite     string
	RequestHeaders  []HeaderMutation // applied before the route's
	ResponseHeaders []HeaderMutation
}

// RouteAction sends requests to a cluster. Immutable.
type RouteAction struct {
	Clusters      []WeightedCluster // at least one, unless ClusterHeader is set
	TotalWeight   uint32
	ClusterHeader string // the request header that names the cluster
	// NotFoundStatus answers when the cluster does not exist: 503 (default), 404 or 500.
	NotFoundStatus int

	PrefixRewrite string
	RegexRewrite  *RegexRewrite
	Host          HostRewrite

	Timeout           time.Duration // of the whole answer; default 15 s; 0: none
	IdleTimeout       time.Duration // per stream; negative: the connection manager's
	MaxStreamDuration time.Duration // negative: the connection manager's; 0: none
	// GRPCTimeoutMax bounds grpc-timeout; negative: the header is not used; 0: unbounded.
	GRPCTimeoutMax    time.Duration
	GRPCTimeoutOffset time.Duration

	Retry    *RetryPolicy // nil: none
	Mirrors  []Mirror
	Hash     []HashPolicy
	Priority uint8           // index into Cluster.Breakers
	Upgrades map[string]bool // by lower-case name; over the connection manager's
	CORS     *CORSPolicy     // of the deprecated field; Route.Filters comes first
}

// Pick chooses one of the clusters by weight with a random number; nil if ClusterHeader is set.
func (a *RouteAction) Pick(random uint64) *WeightedCluster {
	if len(a.Clusters) == 0 {
		return nil
	}
	return &a.Clusters[pick(a.Clusters, a.TotalWeight, random)]
}

func pick(cs []WeightedCluster, total uint32, random uint64) int {
	if len(cs) == 1 || total == 0 {
		return 0
	}
	n := uint32(random % uint64(total))
	for i := range cs {
		if n < cs[i].Weight {
			return i
		}
		n -= cs[i].Weight
	}
	return len(cs) - 1
}

// RegexRewrite replaces all matches in the path (without query).
type RegexRewrite struct {
	Regex *regexp.Regexp
	// Substitution is in Go's template syntax ("${1}").
	Substitution string
}

// HostRewrite says what becomes of Host; at most one is set.
type HostRewrite struct {
	Literal      string
	Auto         bool   // the endpoint's hostname
	Header       string // the value of that request header
	Path         *RegexRewrite
	AppendXFHost bool // the former host to X-Forwarded-Host
}

// Retry conditions (retry_on).
type RetryOn uint32

// Retry conditions.
const (
	Retry5xx RetryOn = 1 << iota
	RetryGatewayError
	RetryReset
	RetryResetBeforeRequest
	RetryConnectFailure
	RetryEnvoyRateLimited
	RetryRetriable4xx
	RetryRefusedStream
	RetryRetriableStatusCodes
	RetryRetriableHeaders
	RetryHTTP3PostConnectFailure
	RetryGRPCCancelled
	RetryGRPCDeadlineExceeded
	RetryGRPCInternal
	RetryGRPCResourceExhausted
	RetryGRPCUnavailable
)

// RetryPolicy says when and how a request is tried again.
type RetryPolicy struct {
	On             RetryOn
	Num            uint32          // default 1
	PerTryTimeout  time.Duration   // 0: the route's
	StatusCodes    []int           // for RetryRetriableStatusCodes
	Headers        []HeaderMatcher // for RetryRetriableHeaders
	RequestHeaders []HeaderMatcher // retry only these requests, if not empty
	PreviousHosts  bool            // avoid hosts already tried
	// PreviousPriorities is after how many attempts the priorities tried are avoided; 0: never.
	PreviousPriorities int
	HostAttempts       int           // host_selection_retry_max_attempts; default 1
	BackoffBase        time.Duration // default 25 ms
	BackoffMax         time.Duration // default 10 times base
	RateLimited        *RateLimitedBackoff
}

// RateLimitedBackoff takes the back-off from a response header.
type RateLimitedBackoff struct {
	Headers []ResetHeader
	Max     time.Duration
}

// ResetHeader names a header with a time to wait.
type ResetHeader struct {
	Name string
	Unix bool // a unix time instead of seconds
}

// Mirror sends a copy of requests to another cluster and ignores the answer.
type Mirror struct {
	Cluster       string
	ClusterHeader string
	Fraction      *Fraction // nil: all
	KeepHost      bool      // else "-shadow" is appended
}

// HashKind is what a HashPolicy takes its hash from.
type HashKind uint8

// Hash sources.
const (
	HashHeader HashKind = iota
	HashCookie
	HashSourceIP
	HashQuery
)

// HashPolicy is one part of the hash for RING_HASH and MAGLEV.
type HashPolicy struct {
	Kind     HashKind
	Name     string
	TTL      time.Duration // of a generated cookie; negative: generate none
	Path     string
	Terminal bool
	// Attributes are those of a generated cookie, as they are written: "; SameSite=Strict; Secure".
	Attributes string
}

// Redirect answers with a redirect.
type Redirect struct {
	Status     int
	Scheme     string // "https" for https_redirect; empty: keep
	Host       string
	Port       uint32
	Path       string
	Prefix     string
	SetPrefix  bool
	Regex      *RegexRewrite
	StripQuery bool
}

// DirectResponse answers by itself.
type DirectResponse struct {
	Status      int
	Body        []byte
	Format      *accesslog.Format // instead of Body
	ContentType string
}

// HeaderAction says what is done where the header exists.
type HeaderAction uint8

// Header actions.
const (
	HeaderAppend HeaderAction = iota // add another
	HeaderAddIfAbsent
	HeaderOverwrite
	HeaderOverwriteIfExists
)

// HeaderMutation removes a header, or sets it.
type HeaderMutation struct {
	Name      string // lower case
	Remove    bool
	Action    HeaderAction
	Value     string            // or
	Format    *accesslog.Format // if it depends on the request
	KeepEmpty bool
}
