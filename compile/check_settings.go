package compile

import (
	"fmt"
	"slices"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
)

// unheeded finds what a rule says that has another effect than it says, or none beside what else it says. Fields
// that never have an effect are in the ledger of package schema.
func (c *checker) unheeded(r *mesh.DestinationRule) {
	check := func(field string, p *networking.TrafficPolicy) {
		c.unheededPolicy(r.Key(), field, p)
		for i, s := range p.GetPortLevelSettings() {
			c.unheededPolicy(r.Key(), fmt.Sprintf("%s.portLevelSettings[%d]", field, i), &networking.TrafficPolicy{
				LoadBalancer: s.LoadBalancer, OutlierDetection: s.OutlierDetection, Tls: s.Tls,
			})
		}
	}
	check("spec.trafficPolicy", r.Spec.GetTrafficPolicy())
	for i, s := range r.Spec.GetSubsets() {
		check(fmt.Sprintf("spec.subsets[%d].trafficPolicy", i), s.GetTrafficPolicy())
	}
}

func (c *checker) unheededPolicy(key mesh.Key, field string, p *networking.TrafficPolicy) {
	add := func(at, fix, message string) { c.add("", key, field+at, fix, "%s", message) }
	if p.GetLoadBalancer().GetZoneAwareLbSetting() != nil {
		add(".loadBalancer.zoneAwareLbSetting", "use localityLbSetting to prefer a zone", "regions are preferred as it says, but in a region the endpoints of all zones are used evenly")
	}
	t := p.GetTls()
	if t.GetMode() == networking.ClientTLSSettings_ISTIO_MUTUAL && t.GetInsecureSkipVerify().GetValue() {
		add(".tls.insecureSkipVerify", "remove it", "it has no effect with ISTIO_MUTUAL: workloads are always verified")
	}
	if t.GetCredentialName() != "" && t.GetCaCrl() != "" {
		add(".tls.caCrl", "write the list into the Secret, as ca.crl", "it has no effect beside credentialName")
	}
}

// meshConfig finds settings that have another effect than they say.
func (c *checker) meshConfig() {
	conf := c.s.Config()
	m := conf.Spec
	add := func(field, fix, format string, args ...any) { c.add("", conf.Object, field, fix, format, args...) }
	for _, p := range []struct {
		field      string
		said, only int32
	}{{"proxyListenPort", m.GetProxyListenPort(), 15001}, {"proxyInboundListenPort", m.GetProxyInboundListenPort(), 15006}} {
		if p.said != 0 && p.said != p.only {
			add(p.field, "remove it", "sidecars listen on port %d, whatever it says", p.only)
		}
	}
	for _, x := range []struct {
		field string
		said  bool
		fix   string
		says  string
	}{
		{"verifyCertificateAtClient", m.GetVerifyCertificateAtClient() != nil && !m.GetVerifyCertificateAtClient().GetValue(), "set insecureSkipVerify in the DestinationRules that need it", "servers are verified, whatever it says"},
		{"outboundTrafficPolicy.mode", m.GetOutboundTrafficPolicy().GetMode() == meshconfig.MeshConfig_OutboundTrafficPolicy_ALLOW_ANY_DYNAMIC_DNS, "set it to ALLOW_ANY", "it is taken as ALLOW_ANY: what the mesh does not know goes to the address that the client had looked up"},
		{"meshMTLS.ecdhCurves", len(m.GetMeshMTLS().GetEcdhCurves()) > 0 && len(keepKnown(m.GetMeshMTLS().GetEcdhCurves(), curves)) == 0, "name one of " + strings.Join(curves, ", "), "none of them is known, so the proxy's own are used"},
		{"tlsDefaults.ecdhCurves", len(m.GetTlsDefaults().GetEcdhCurves()) > 0 && len(keepKnown(m.GetTlsDefaults().GetEcdhCurves(), curves)) == 0, "name one of " + strings.Join(curves, ", "), "none of them is known, so the proxy's own are used"},
	} {
		if x.said {
			add(x.field, x.fix, "%s", x.says)
		}
	}
	for field, t := range map[string]*meshconfig.MeshConfig_TLSConfig{"meshMTLS": m.GetMeshMTLS(), "tlsDefaults": m.GetTlsDefaults()} {
		for i, name := range t.GetCipherSuites() {
			if !slices.Contains(cipherSuites, name) {
				add(fmt.Sprintf("%s.cipherSuites[%d]", field, i), "name one of "+strings.Join(cipherSuites, ", "), "%q is not a cipher suite that proxies know, and is left out", name)
			}
		}
	}
}
