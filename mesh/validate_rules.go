package mesh

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
)

func (v *validator) gateway(g *networking.Gateway) {
	if len(g.GetServers()) == 0 {
		v.add("spec.servers", "add a server", "there are no servers")
	}
	for i, s := range g.GetServers() {
		field := fmt.Sprintf("spec.servers[%d]", i)
		v.port(field+".port.number", s.GetPort().GetNumber())
		proto, ok := ParseProtocol(s.GetPort().GetProtocol())
		if !ok || proto == UDP {
			v.add(field+".port.protocol", "name HTTP, HTTPS, HTTP2, GRPC, TCP or TLS", "%q is no protocol of a gateway", s.GetPort().GetProtocol())
		}
		if len(s.GetHosts()) == 0 {
			v.add(field+".hosts", `name hosts, or "*" for all`, "there are no hosts")
		}
		for j, h := range s.GetHosts() {
			if _, rest, ok := strings.Cut(h, "/"); ok {
				h = rest
			}
			if proto.IsTLS() {
				v.host(fmt.Sprintf("%s.hosts[%d]", field, j), h)
			} else {
				v.pattern(fmt.Sprintf("%s.hosts[%d]", field, j), h)
			}
		}
		if b := s.GetBind(); b != "" {
			if _, err := netip.ParseAddr(b); err != nil {
				v.add(field+".bind", "name an IP address of the gateway", "%q is not an IP address", b)
			}
		}
		v.serverTLS(field+".tls", proto, s.GetTls())
	}
}

func (v *validator) serverTLS(field string, p Protocol, t *networking.ServerTLSSettings) {
	if p.IsTLS() && t == nil {
		v.add(field, "add tls with a mode", "protocol %s needs it", p)
		return
	}
	if !p.IsTLS() && t != nil && !t.GetHttpsRedirect() && t.GetMode() != networking.ServerTLSSettings_PASSTHROUGH {
		v.add(field, "name protocol HTTPS or TLS, or remove tls", "protocol %s has no TLS", p)
	}
	if !p.IsTLS() {
		return
	}
	if lo, hi := t.GetMinProtocolVersion(), t.GetMaxProtocolVersion(); lo > hi && hi != networking.ServerTLSSettings_TLS_AUTO {
		v.add(field+".minProtocolVersion", "name one up to maxProtocolVersion", "%s is above maxProtocolVersion %s", lo, hi)
	}
	switch m := t.GetMode(); m {
	case networking.ServerTLSSettings_SIMPLE, networking.ServerTLSSettings_MUTUAL, networking.ServerTLSSettings_OPTIONAL_MUTUAL:
		v.serverCertificates(field, t)
	}
}

// serverCertificates checks that a server of its own TLS has a certificate, and roots if it verifies clients.
func (v *validator) serverCertificates(field string, t *networking.ServerTLSSettings) {
	secrets := t.GetCredentialName() != "" || len(t.GetCredentialNames()) > 0
	if t.GetCredentialName() != "" && len(t.GetCredentialNames()) > 0 {
		v.add(field+".credentialNames", "name all Secrets in credentialNames", "credentialName names one beside them")
	}
	roots := t.GetCaCertificates() != "" || t.GetCaCertCredentialName() != ""
	for i, c := range t.GetTlsCertificates() {
		if c.GetServerCertificate() == "" || c.GetPrivateKey() == "" {
			v.add(fmt.Sprintf("%s.tlsCertificates[%d]", field, i), "name serverCertificate and privateKey", "a certificate needs both files")
		}
		roots = roots || c.GetCaCertificates() != ""
	}
	if !secrets && len(t.GetTlsCertificates()) == 0 && (t.GetServerCertificate() == "" || t.GetPrivateKey() == "") {
		v.add(field+".credentialName", "name a Secret of the gateway's namespace", "mode %s needs a certificate", t.GetMode())
	}
	if t.GetMode() != networking.ServerTLSSettings_SIMPLE && !secrets && !roots {
		v.add(field+".caCertificates", "name a file, or use credentialName", "mode %s needs roots for clients", t.GetMode())
	}
}

// ClientTLS yields all that a rule says of TLS, by the field where it does.
func ClientTLS(r *networking.DestinationRule) iter.Seq2[string, *networking.ClientTLSSettings] {
	return func(yield func(string, *networking.ClientTLSSettings) bool) {
		policy := func(field string, p *networking.TrafficPolicy) bool {
			if t := p.GetTls(); t != nil && !yield(field+".tls", t) {
				return false
			}
			for i, x := range p.GetPortLevelSettings() {
				if t := x.GetTls(); t != nil && !yield(fmt.Sprintf("%s.portLevelSettings[%d].tls", field, i), t) {
					return false
				}
			}
			return true
		}
		if !policy("spec.trafficPolicy", r.GetTrafficPolicy()) {
			return
		}
		for i, x := range r.GetSubsets() {
			if !policy(fmt.Sprintf("spec.subsets[%d].trafficPolicy", i), x.GetTrafficPolicy()) {
				return
			}
		}
	}
}

func (v *validator) destinationRule(r *networking.DestinationRule) {
	v.host("spec.host", r.GetHost())
	v.exportTo(r.GetExportTo())
	if r.GetWorkloadSelector() != nil {
		for field, t := range ClientTLS(r) {
			if t.GetCredentialName() != "" { // in Istio sidecars get the Secret; here it would be plaintext that nobody expects
				v.add(field+".credentialName", "name files that the pods have (clientCertificate, privateKey, caCertificates), or leave workloadSelector out, for gateways", "sidecars, which workloadSelector may select, may not read Secrets")
			}
		}
	}
	v.trafficPolicy("spec.trafficPolicy", r.GetTrafficPolicy())
	seen := map[string]bool{}
	for i, s := range r.GetSubsets() {
		field := fmt.Sprintf("spec.subsets[%d]", i)
		switch {
		case len(s.GetName()) > 63 || !dnsLabel.MatchString(strings.ToLower(s.GetName())): // it is part of server names
			v.add(field+".name", "name it by letters, digits and -, at most 63", "%q is not a name of a subset", s.GetName())
		case seen[strings.ToLower(s.GetName())]: // server names have no case
			v.add(field+".name", "rename or remove one", "there is another subset %q", s.GetName())
		}
		seen[strings.ToLower(s.GetName())] = true
		v.trafficPolicy(field+".trafficPolicy", s.GetTrafficPolicy())
	}
}

func (v *validator) trafficPolicy(field string, p *networking.TrafficPolicy) {
	v.policy(field, p.GetConnectionPool(), p.GetLoadBalancer(), p.GetOutlierDetection(), p.GetTls())
	for i, s := range p.GetPortLevelSettings() {
		f := fmt.Sprintf("%s.portLevelSettings[%d]", field, i)
		v.port(f+".port.number", s.GetPort().GetNumber())
		v.policy(f, s.GetConnectionPool(), s.GetLoadBalancer(), s.GetOutlierDetection(), s.GetTls())
	}
}

func (v *validator) policy(field string, c *networking.ConnectionPoolSettings, lb *networking.LoadBalancerSettings, o *networking.OutlierDetection, t *networking.ClientTLSSettings) {
	v.duration(field+".connectionPool.tcp.connectTimeout", c.GetTcp().GetConnectTimeout(), time.Millisecond)
	v.duration(field+".connectionPool.tcp.maxConnectionDuration", c.GetTcp().GetMaxConnectionDuration(), time.Millisecond)
	v.duration(field+".connectionPool.tcp.idleTimeout", c.GetTcp().GetIdleTimeout(), 0)
	v.duration(field+".connectionPool.http.idleTimeout", c.GetHttp().GetIdleTimeout(), 0)
	if k := c.GetHttp().GetHttp2KeepAlive(); k != nil {
		if k.GetInterval() == nil || k.GetTimeout() == nil {
			v.add(field+".connectionPool.http.http2KeepAlive", "name interval and timeout", "it needs both")
		}
		v.duration(field+".connectionPool.http.http2KeepAlive.interval", k.GetInterval(), time.Millisecond)
		v.duration(field+".connectionPool.http.http2KeepAlive.timeout", k.GetTimeout(), time.Millisecond)
	}
	for name, n := range map[string]int32{
		".connectionPool.tcp.maxConnections": c.GetTcp().GetMaxConnections(), ".connectionPool.http.http1MaxPendingRequests": c.GetHttp().GetHttp1MaxPendingRequests(),
		".connectionPool.http.http2MaxRequests": c.GetHttp().GetHttp2MaxRequests(), ".connectionPool.http.maxRetries": c.GetHttp().GetMaxRetries(),
		".connectionPool.http.maxRequestsPerConnection": c.GetHttp().GetMaxRequestsPerConnection(),
		".connectionPool.http.maxConcurrentStreams":     c.GetHttp().GetMaxConcurrentStreams(),
	} {
		if n < 0 {
			v.add(field+name, "name 0 or more", "%d is no limit", n)
		}
	}
	v.duration(field+".outlierDetection.interval", o.GetInterval(), time.Millisecond)
	v.duration(field+".outlierDetection.baseEjectionTime", o.GetBaseEjectionTime(), time.Millisecond)
	v.percentage(field+".outlierDetection.maxEjectionPercent", float64(o.GetMaxEjectionPercent()))
	v.percentage(field+".outlierDetection.minHealthPercent", float64(o.GetMinHealthPercent()))
	v.balancer(field+".loadBalancer", lb)
	if t.GetMode() == networking.ClientTLSSettings_MUTUAL && t.GetCredentialName() == "" && (t.GetClientCertificate() == "" || t.GetPrivateKey() == "") {
		v.add(field+".tls", "name clientCertificate and privateKey, or credentialName", "mode MUTUAL needs a certificate")
	}
}

func (v *validator) balancer(field string, lb *networking.LoadBalancerSettings) {
	if h := lb.GetConsistentHash(); h != nil {
		switch k := h.GetHashKey().(type) {
		case nil:
			v.add(field+".consistentHash", "name httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName", "it does not say what to hash")
		case *networking.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName:
			v.headerName(field+".consistentHash.httpHeaderName", k.HttpHeaderName)
		case *networking.LoadBalancerSettings_ConsistentHashLB_HttpCookie:
			if k.HttpCookie.GetName() == "" {
				v.add(field+".consistentHash.httpCookie.name", "name the cookie", "there is no name")
			}
			for i, a := range k.HttpCookie.GetAttributes() {
				if !token.MatchString(a.GetName()) || strings.ContainsFunc(a.GetValue(), func(r rune) bool { return r == ';' || r < ' ' || r == 0x7f }) {
					v.add(fmt.Sprintf("%s.consistentHash.httpCookie.attributes[%d]", field, i), "name one, such as SameSite with value Strict",
						"%q with value %q is not an attribute of a cookie", a.GetName(), a.GetValue())
				}
			}
		case *networking.LoadBalancerSettings_ConsistentHashLB_HttpQueryParameterName:
			if k.HttpQueryParameterName == "" {
				v.add(field+".consistentHash.httpQueryParameterName", "name the parameter", "there is no name")
			}
		}
		if n := h.GetMaglev().GetTableSize(); n > 5000011 {
			v.add(field+".consistentHash.maglev.tableSize", "name a prime up to 5000011", "%d is too large", n)
		}
		if n := h.GetRingHash().GetMinimumRingSize(); n > 8388608 {
			v.add(field+".consistentHash.ringHash.minimumRingSize", "name up to 8388608", "%d is too large", n)
		}
	}
	v.duration(field+".warmupDurationSecs", lb.GetWarmupDurationSecs(), time.Second)
	if w := lb.GetWarmup(); w != nil {
		if w.GetDuration() == nil {
			v.add(field+".warmup.duration", "name how long it takes, such as 60s", "there is no duration")
		}
		v.duration(field+".warmup.duration", w.GetDuration(), time.Second)
		v.percentage(field+".warmup.minimumPercent", w.GetMinimumPercent().GetValue())
		if a := w.GetAggression(); a != nil && !(a.GetValue() > 0) {
			v.add(field+".warmup.aggression", "name a number above 0", "%v is not above 0", a.GetValue())
		}
	}
	l := lb.GetLocalityLbSetting()
	for i, d := range l.GetDistribute() {
		sum := uint32(0)
		for _, w := range d.GetTo() {
			sum += w
		}
		if sum != 100 {
			v.add(fmt.Sprintf("%s.localityLbSetting.distribute[%d].to", field, i), "make the weights add up to 100", "they add up to %d", sum)
		}
	}
}

func (v *validator) peerAuthentication(p *security.PeerAuthentication) {
	if len(p.GetPortLevelMtls()) > 0 && len(p.GetSelector().GetMatchLabels()) == 0 {
		v.add("spec.portLevelMtls", "add spec.selector.matchLabels", "ports can only be named for selected workloads")
	}
	if !isMode(p.GetMtls()) {
		v.add("spec.mtls.mode", "name STRICT, PERMISSIVE, DISABLE or UNSET", "%d is not a mode", p.GetMtls().GetMode())
	}
	for _, n := range slices.Sorted(maps.Keys(p.GetPortLevelMtls())) {
		v.port(fmt.Sprintf("spec.portLevelMtls.%d", n), n)
		if m := p.GetPortLevelMtls()[n]; !isMode(m) {
			v.add(fmt.Sprintf("spec.portLevelMtls.%d.mode", n), "name STRICT, PERMISSIVE, DISABLE or UNSET", "%d is not a mode", m.GetMode())
		}
	}
}

func (v *validator) meshConfig(m *meshconfig.MeshConfig) {
	v.duration("connectTimeout", m.GetConnectTimeout(), time.Millisecond)
	v.duration("protocolDetectionTimeout", m.GetProtocolDetectionTimeout(), 0)
	v.duration("dnsRefreshRate", m.GetDnsRefreshRate(), 2*time.Millisecond)
	v.retries("defaultHttpRetryPolicy", m.GetDefaultHttpRetryPolicy())
	v.policy("defaultTrafficPolicy", m.GetDefaultTrafficPolicy().GetConnectionPool(), nil, m.GetDefaultTrafficPolicy().GetOutlierDetection(), nil)
	for i, s := range m.GetDiscoverySelectors() {
		for j, e := range s.GetMatchExpressions() {
			if !slices.Contains([]string{"In", "NotIn", "Exists", "DoesNotExist"}, e.GetOperator()) {
				v.add(fmt.Sprintf("discoverySelectors[%d].matchExpressions[%d].operator", i, j), "name In, NotIn, Exists or DoesNotExist",
					"%q is not an operator", e.GetOperator())
			}
		}
	}
	format := m.GetAccessLogFormat()
	if m.GetAccessLogEncoding() != meshconfig.MeshConfig_JSON {
		v.format("accessLogFormat", format)
		return
	}
	if format == "" {
		return
	}
	fields := map[string]any{}
	if err := json.Unmarshal([]byte(format), &fields); err != nil {
		v.add("accessLogFormat", `write {"key": "%OPERATOR%", ...}, or set accessLogEncoding: TEXT`, "it is no JSON object: %v", err)
		return
	}
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		if s, ok := fields[k].(string); ok {
			v.format("accessLogFormat."+k, s)
		}
	}
}
