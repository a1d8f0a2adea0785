package diagnose

import (
	"fmt"
	"strings"
)

// flags are Envoy's response flags.
var flags = map[string]string{
	"DC":     "the caller closed the connection",
	"DI":     "delayed by fault injection",
	"DPE":    "the caller broke the protocol",
	"DR":     "a drain time ran out",
	"DT":     "the request took longer than the stream may",
	"DO":     "dropped by the overload manager",
	"FI":     "aborted by fault injection",
	"IH":     "a header was refused",
	"LH":     "the local service failed its health check",
	"LR":     "the connection was reset by this proxy",
	"NC":     "the route names a cluster that this proxy does not have",
	"NR":     "no route or filter chain matches",
	"NFCF":   "the filter's configuration has not come",
	"OM":     "the overload manager ended the request",
	"RFCF":   "the response was refused by its filter",
	"RL":     "limited by the rate limit service",
	"RLSE":   "the rate limit service failed",
	"SI":     "the stream was idle too long",
	"UAEX":   "denied by the authorization service",
	"UC":     "the connection to the upstream host was closed early",
	"UF":     "the connection to the upstream host failed",
	"UH":     "the cluster has no healthy host",
	"UMSDR":  "the stream took longer than the route allows",
	"UO":     "a circuit breaker was open",
	"UPE":    "the upstream host broke the protocol",
	"UR":     "the upstream host reset the request",
	"URX":    "retried as often as is allowed, or connected as often, in vain",
	"UT":     "the upstream host did not answer in time",
	"UHS":    "the upstream host is not known",
	"UDO":    "the upstream host is overloaded",
	"DF":     "the upstream's name could not be resolved",
	"NFCFTO": "the filter's configuration did not come in time",
}

func flagsMeaning(s string) string {
	var out []string
	for _, f := range strings.Split(s, ",") {
		m := flags[f]
		if m == "" {
			m = "not a flag of Envoy's"
		}
		out = append(out, m)
	}
	return strings.Join(out, "; ")
}

func codeMeaning(code string) string {
	if code == "" {
		return ""
	}
	switch code {
	case "403":
		return "refused: as a rule by an AuthorizationPolicy"
	case "404":
		return "not found: by the application, or with flag NR because no route matches"
	case "503":
		return "not available: see the flags and the transport failure"
	case "504":
		return "not in time"
	}
	switch code[0] {
	case '2':
		return "success"
	case '3':
		return "sent elsewhere"
	case '4':
		return "the request was refused"
	case '5':
		return "the answering side failed"
	}
	return ""
}

func detailsMeaning(s string) string {
	switch {
	case s == "via_upstream":
		return "the answer is the upstream host's"
	case s == "route_not_found":
		return "no route matches host and path"
	case s == "cluster_not_found":
		return "the route's cluster is not there"
	case s == "no_healthy_upstream":
		return "the cluster has no healthy host"
	case s == "direct_response":
		return "the route answers by itself"
	case strings.HasPrefix(s, "upstream_reset_before_response_started"):
		return "the upstream connection ended before an answer came"
	case strings.HasPrefix(s, "rbac_access_denied"):
		return "an AuthorizationPolicy denied it"
	}
	return "why this response came"
}

func transportMeaning(s string) string {
	low := strings.ToLower(s)
	switch {
	case strings.Contains(low, "certificate_verify_failed"), strings.Contains(low, "unknown authority"):
		return "the other side's certificate is not signed by a root that this proxy trusts: compare the roots with carrick ca show"
	case strings.Contains(low, "certificate_expired"), strings.Contains(low, "expired"):
		return "a certificate has expired"
	case strings.Contains(low, "wrong_version_number"):
		return "TLS was spoken to a port that does not speak it"
	case strings.Contains(low, "connection_refused"), strings.Contains(low, "refused"):
		return "nothing listens there"
	}
	return "why the connection to the upstream host failed"
}

func clusterMeaning(name string) string {
	switch name {
	case "PassthroughCluster":
		return "no Service of the mesh: sent on as the caller wanted it, without mTLS"
	case "BlackHoleCluster":
		return "no Service of the mesh, and outboundTrafficPolicy forbids others"
	case "InboundPassthroughCluster":
		return "a port of the pod that no Service names"
	}
	if s, ok := ParseServerName(name); ok {
		return s
	}
	direction, port, subset, fqdn := SplitName(name)
	switch direction {
	case "inbound":
		return "port " + port + " of the pod's application"
	case "outbound":
		m := fmt.Sprintf("Service %s, port %s", fqdn, port)
		if subset != "-" {
			m += ", subset " + subset
		}
		return m
	}
	return ""
}

// ParseServerName explains a name of the form outbound_.PORT_.SUBSET_.HOST, by which gateways
// between networks route.
func ParseServerName(s string) (string, bool) {
	p := strings.SplitN(s, "_.", 4)
	if len(p) != 4 || p[0] != "outbound" {
		return "", false
	}
	m := fmt.Sprintf("Service %s, port %s", p[3], p[1])
	if p[2] != "" {
		m += ", subset " + p[2]
	}
	return m, true
}

func serverNameMeaning(s string) string {
	if m, ok := ParseServerName(s); ok {
		return "TLS server name for " + m + ": a gateway between networks routes by it"
	}
	return "TLS server name (SNI) that the caller sent"
}

func routeMeaning(s string) string {
	switch s {
	case "default":
		return "the Service's route without a VirtualService"
	case "allow_any":
		return "the route for hosts that the mesh does not know"
	case "block_all":
		return "outboundTrafficPolicy forbids hosts that the mesh does not know"
	}
	return "name of the route, as in the VirtualService"
}
