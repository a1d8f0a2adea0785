package diagnose

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// Point is a pod that a request went through, and what is known of it.
type Point struct {
	Cluster   string // of the mesh
	Network   string
	Namespace string
	Pod       string
	Gateway   bool
	Proxy     bool   // has a sidecar, or is a gateway
	Account   string // service account of the pod
	Dump      *Dump  // nil if the proxy could not be asked
	Line      *Line  // its access-log line of the request; nil if there is none
}

// Hop is one step of a request's way, as it is shown.
type Hop struct {
	Pod      string `json:"pod"` // NAMESPACE/NAME
	Cluster  string `json:"cluster"`
	Network  string `json:"network,omitempty"`
	Role     string `json:"role"` // caller, gateway, answer
	Identity string `json:"identity,omitempty"`
	Listener string `json:"listener,omitempty"`
	From     string `json:"from,omitempty"` // HOST:PORT of who connected
	To       string `json:"to,omitempty"`   // HOST:PORT where the connection came in
	SNI      string `json:"serverName,omitempty"`
	Route    string `json:"route,omitempty"` // CONFIGURATION / VIRTUAL HOST / ROUTE
	Upstream string `json:"upstreamCluster,omitempty"`
	Out      string `json:"upstreamLocal,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
	Whose    string `json:"endpointIs,omitempty"`
	Start    string `json:"start,omitempty"` // by the proxy's own clock, RFC 3339
	Millis   string `json:"durationMillis,omitempty"`
	Code     string `json:"responseCode,omitempty"`
	Flags    string `json:"responseFlags,omitempty"`
	OK       bool   `json:"ok"`
	Verdict  string `json:"verdict"`
	Fix      string `json:"fix,omitempty"`
	FromLog  bool   `json:"fromLog"` // false: taken from configuration
}

// Hop describes one point of a request to an authority. place says what an address is, as of Explain.
func (p *Point) Hop(authority string, place func(string) string) Hop {
	h := Hop{Pod: p.Namespace + "/" + p.Pod, Cluster: p.Cluster, Network: p.Network, Role: "answer", OK: true}
	if p.Gateway {
		h.Role = "gateway"
	}
	if p.Dump != nil {
		h.Identity = p.Dump.Identity().Name
	}
	if h.Identity == "" && p.Account != "" {
		h.Identity = "ns/" + p.Namespace + "/sa/" + p.Account + " (by the pod)"
	}
	if l := p.Line; l != nil {
		h.fromLine(l, p, authority, place)
		return h
	}
	switch {
	case !p.Proxy:
		h.Identity = ""
		h.Verdict = "has no sidecar: the request came to it as it is, without mutual TLS"
	case p.Gateway:
		h.Verdict = "passed the connection on; it logs a connection when that ends"
	case p.Dump != nil && !p.Dump.LogsAccess():
		h.Verdict = "the access log is off there, so what it did is not known"
		h.Fix = "set accessLogFile: /dev/stdout in ConfigMap istio (namespace istio-system) of " + p.Cluster
	default:
		h.OK = false
		h.Verdict = "has no log line of the request: it did not get there"
	}
	return h
}

func (h *Hop) fromLine(l *Line, p *Point, authority string, place func(string) string) {
	dash := func(s string) string {
		if s == "-" {
			return ""
		}
		return s
	}
	h.FromLog = true
	h.From, h.To, h.Out = dash(l.DownstreamRemote), dash(l.DownstreamLocal), dash(l.UpstreamLocal)
	h.SNI, h.Upstream, h.Endpoint = dash(l.ServerName), dash(l.UpstreamCluster), dash(l.UpstreamHost)
	h.Start, h.Millis, h.Code, h.Flags = l.StartTime, dash(l.Duration), dash(l.Code), dash(l.Flags)
	if h.Code == "0" {
		h.Code = ""
	}
	h.Route = dash(l.RouteName)
	if h.Endpoint != "" {
		h.Whose = place(h.Endpoint)
	}
	side := l.Side()
	if side == Source && !p.Gateway {
		h.Role = "caller"
	}
	if p.Dump != nil {
		if side == Destination {
			h.Listener = "virtualInbound"
		} else {
			way := p.Dump.Way(h.To, authority, l.Path)
			h.Listener = way.Listener
			if way.RouteConfig != "" && h.Route != "" {
				h.Route = strings.Join([]string{way.RouteConfig, way.VirtualHost, h.Route}, " / ")
			}
		}
	}
	h.Verdict, h.Fix, h.OK = verdict(l, side, h.Whose)
	if h.Fix != "" {
		h.Fix = strings.ReplaceAll(h.Fix, "CLUSTER", p.Cluster)
	}
}

// verdict judges one log line.
func verdict(l *Line, side Side, whose string) (say, fix string, ok bool) {
	if why, fix, bad := Remedy(l); bad {
		return why, fix, false
	}
	to := cmp.Or(whose, l.UpstreamHost)
	switch side {
	case Source:
		return "sent it to " + to, "", true
	case Passthrough:
		return "passed it on, still encrypted, to " + to, "", true
	case Destination:
		if l.ServerName == "" || l.ServerName == "-" {
			return "gave it to the application; it came in plain text", "", true
		}
		return "took it by mutual TLS and gave it to the application, which answered " + l.Code, "", true
	}
	return "saw it", "", true
}

// Remedy says what went wrong in a line and what to do; bad is false if nothing did. A refusal by
// the application itself is not the mesh's.
func Remedy(l *Line) (why, fix string, bad bool) {
	fs := strings.Split(l.Flags, ",")
	why = flagsMeaning(l.Flags)
	if t := l.TransportFailure; t != "" && t != "-" {
		why += " (" + transportMeaning(t) + ": " + t + ")"
	}
	for _, f := range fs {
		if fix := remedies[f]; fix != "" {
			if f == "UF" && strings.Contains(strings.ToLower(l.TransportFailure), "cert") {
				fix = "compare the roots: carrick mesh check, or carrick ca show with both contexts"
			}
			return why, fix, true
		}
	}
	if strings.HasPrefix(l.CodeDetails, "rbac_access_denied") {
		return "an AuthorizationPolicy denied it", "allow the caller's identity in the AuthorizationPolicy of the called namespace", true
	}
	if l.Flags != "" && l.Flags != "-" {
		return why, "", true
	}
	return "", "", false
}

// remedies are by response flag.
var remedies = map[string]string{
	"NR":  "no listener or route matches: check host and port of the URL against carrick proxy-config route and listener of the pod, and the VirtualService",
	"NC":  "the route names a cluster that is not there: carrick analyze finds the missing Service, port or subset",
	"UH":  "no endpoint is ready: see carrick proxy-config endpoint of the pod; are pods ready, and has each other network a gateway with an address? carrick mesh check",
	"UF":  "the endpoint does not take connections: is the gateway's address reachable from the node, port 15443 open between the clusters, the pod listening? carrick mesh check",
	"UC":  "the answering side closed the connection: look at its log line and at the application's log",
	"UR":  "the answering side reset the request: look at the application's log",
	"UT":  "the answer took longer than the route's timeout: raise it in the VirtualService, or look at the application",
	"UO":  "a circuit breaker of the DestinationRule was open: raise connectionPool, or add pods",
	"URX": "the retries were used up: the lines at the answering side say why",
	"DC":  "the caller went away before the answer: raise its timeout",
	"UPE": "the port's protocol is not what its name says: name the Service's port by its protocol (http-, grpc-, tcp-)",
	"DPE": "the caller speaks another protocol than the port's name says: name the Service's port by its protocol",
	"DF":  "the external host's name has no address: check the ServiceEntry's hosts and DNS",
	"FI":  "a VirtualService injects this fault: remove it if it is not wanted",
	"RL":  "a rate limit holds: raise it, or call less often",
	"SI":  "the stream was idle longer than allowed: raise the idle timeout",
}

// SameRequest reports whether two request ids are of one request. Envoy writes how it sampled a
// trace into the 15th character.
func SameRequest(a, b string) bool {
	if len(a) != 36 || len(b) != 36 {
		return a == b && a != ""
	}
	return strings.EqualFold(a[:14]+a[15:], b[:14]+b[15:])
}

// Skew bounds how far the clock of the answering side's proxy is ahead of the caller's: what it
// did lies within the time that the caller waited. ok is false where the lines have no times.
func Skew(caller, answer *Line) (atLeast, atMost time.Duration, ok bool) {
	a, da, ok1 := caller.times()
	b, db, ok2 := answer.times()
	if !ok1 || !ok2 {
		return 0, 0, false
	}
	const tick = time.Millisecond // logs have no finer times
	return b.Add(db).Sub(a.Add(da)) - 2*tick, b.Sub(a) + tick, true
}

func (l *Line) times() (start time.Time, d time.Duration, ok bool) {
	start, err := time.Parse(time.RFC3339Nano, l.StartTime)
	if err != nil {
		return start, 0, false
	}
	d, err = time.ParseDuration(l.Duration + "ms")
	return start, d, err == nil
}

// ClockNote is a sentence about two clocks; warn is true if they surely differ by more than most.
func ClockNote(caller, answer string, atLeast, atMost, most time.Duration) (say string, warn bool) {
	r := func(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
	switch {
	case atLeast <= 0 && atMost >= 0:
		return fmt.Sprintf("the clocks of %s and %s agree as far as this request shows (%v to %v)", caller, answer, r(atLeast), r(atMost)), false
	case atLeast > 0:
		return fmt.Sprintf("%s's clock is at least %v ahead of %s's", answer, r(atLeast), caller), atLeast > most
	}
	return fmt.Sprintf("%s's clock is at least %v behind %s's", answer, r(-atMost), caller), -atMost > most
}
