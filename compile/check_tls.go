package compile

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/certs"
	"github.com/carrick-mesh/carrick/mesh"
)

// server finds what is wrong with the certificates that a Gateway's server names, in the namespaces of its pods,
// and what of its TLS has no effect.
func (c *checker) server(key mesh.Key, field string, srv *networking.Server, namespaces []string) {
	t := srv.GetTls()
	for _, name := range serverCredentials(t) {
		at := field + ".tls." + credentialField(t, name)
		if strings.Contains(strings.TrimPrefix(name, secretScheme), "://") {
			c.add("", key, at, "copy it into a Secret of the gateway's namespace", "%s is not read: only Secrets are", name)
			continue
		}
		for _, ns := range namespaces {
			c.secret(key, at, t, mesh.Key{Namespace: ns, Name: strings.TrimPrefix(name, secretScheme)})
		}
	}
	if t.GetMode() == networking.ServerTLSSettings_SIMPLE {
		for name, said := range map[string]bool{
			"verifyCertificateSpki": len(t.GetVerifyCertificateSpki()) > 0, "verifyCertificateHash": len(t.GetVerifyCertificateHash()) > 0,
			"subjectAltNames": len(t.GetSubjectAltNames()) > 0, "caCrl": t.GetCaCrl() != "",
		} {
			if said {
				c.add("", key, field+".tls."+name, "set mode to MUTUAL", "mode SIMPLE asks clients for no certificate, so nothing is verified")
			}
		}
	}
	for j, name := range t.GetCipherSuites() {
		if !slices.Contains(cipherSuites, name) {
			c.add("", key, fmt.Sprintf("%s.tls.cipherSuites[%d]", field, j), "name one of "+strings.Join(cipherSuites, ", "), "%q is no cipher suite, and is left out", name)
		}
	}
	if b := srv.GetBind(); b != "" && b != "0.0.0.0" && b != "::" && t.GetMode() == networking.ServerTLSSettings_AUTO_PASSTHROUGH {
		c.add("", key, field+".bind", "remove it", "it has no effect with AUTO_PASSTHROUGH: the gateway listens on all of its addresses")
	}
}

func credentialField(t *networking.ServerTLSSettings, name string) string {
	if i := slices.Index(t.GetCredentialNames(), name); i >= 0 {
		return fmt.Sprintf("credentialNames[%d]", i)
	}
	if name == t.GetCaCertCredentialName() {
		return "caCertCredentialName"
	}
	return "credentialName"
}

// secret finds what is wrong with a Secret that a server names, so that proxies cannot serve with it.
func (c *checker) secret(key mesh.Key, field string, t *networking.ServerTLSSettings, secret mesh.Key) {
	ns, name := secret.Namespace, secret.Name
	if fix := c.unreadable[ns]; fix != "" {
		c.add("", key, field, fix, "the control plane may not read Secrets of namespace %s, where the gateway's pods are", ns)
		return
	}
	s, roots := c.s.Credential(ns, name), c.s.Credential(ns, strings.TrimSuffix(name, "-cacert")+"-cacert")
	if strings.HasSuffix(field, "caCertCredentialName") {
		if (s == nil || len(s.CA) == 0) && (roots == nil || len(roots.CA) == 0) {
			c.add(notFound, key, field, "create it there, with key ca.crt", "namespace %s of the gateway has no Secret %s with roots", ns, name)
		}
		return
	}
	if s == nil {
		c.add(notFound, key, field, "create it there, of type kubernetes.io/tls", "namespace %s of the gateway has no Secret %s", ns, name)
		return
	}
	if problem, fix := certificateProblem(s, time.Now()); problem != "" {
		c.add("", key, field, fix, "Secret %s/%s: %s", ns, name, problem)
	}
	if verifiesClients(t) && t.GetCaCertCredentialName() == "" && len(s.CA) == 0 && (roots == nil || len(roots.CA) == 0) &&
		name == strings.TrimPrefix(certificateCredentials(t)[0], secretScheme) {
		c.add("", key, field, fmt.Sprintf("add ca.crt to it, or create Secret %s-cacert with key cacert", name),
			"mode %s needs roots for clients, and Secret %s/%s has none: the server answers nobody", t.GetMode(), ns, name)
	}
}

// certificateProblem says why a Secret's certificate cannot be served with, and what to do; "" if it can.
func certificateProblem(s *mesh.Credential, now time.Time) (problem, fix string) {
	const again = "write the certificate, its chain behind it, and its key into it again"
	chain, _, err := certs.Anchors(s.Cert) // blocks of other types are skipped, as Envoy does
	if err != nil {
		return "its certificate " + err.Error(), again
	}
	if _, err := tls.X509KeyPair(s.Cert, s.PrivateKey); err != nil {
		for i, x := range chain[1:] {
			first := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: x.Raw})
			if _, err := tls.X509KeyPair(bytes.Clone(first), s.PrivateKey); err == nil {
				return fmt.Sprintf("its chain is in the wrong order: the key is that of certificate %d", i+2), "put that certificate first and those that signed it behind it"
			}
		}
		return "its certificate and key cannot be used: " + strings.TrimPrefix(err.Error(), "tls: "), again
	}
	switch leaf := chain[0]; {
	case now.After(leaf.NotAfter):
		return "its certificate expired at " + leaf.NotAfter.UTC().Format(time.RFC3339), "renew it"
	case now.Before(leaf.NotBefore):
		return "its certificate is not valid before " + leaf.NotBefore.UTC().Format(time.RFC3339), "wait, or correct the clock of who issued it"
	}
	return "", ""
}

// peerAuthentication finds ports that a policy names by a Service's number, where the workload's own is meant.
func (c *checker) peerAuthentication(p *mesh.PeerAuthentication) {
	selector := p.Spec.GetSelector().GetMatchLabels()
	if len(p.Spec.GetPortLevelMtls()) == 0 || len(selector) == 0 {
		return
	}
	own, meant := map[uint16]bool{}, map[uint16]string{} // the workloads' ports; those of Services that lead to others
	for _, cluster := range c.s.Clusters() {
		for pod := range c.s.Pods(cluster) {
			if pod.Namespace != p.Namespace || !mesh.Selects(selector, pod.Labels) {
				continue
			}
			for _, x := range pod.Ports {
				own[x.Number] = true
			}
			client := Of(c.s, pod, Node{})
			for _, svc := range instances(c.s, client) {
				for _, port := range svc.Ports {
					if n := targetPort(client, port); n != 0 {
						own[n] = true
						if n != port.Number {
							meant[port.Number] = fmt.Sprintf("port %d is that of Service %s; its pods listen on %d", port.Number, svc.Name, n)
						}
					}
				}
			}
		}
	}
	for _, n := range sortedPorts(p.Spec.GetPortLevelMtls()) {
		if why := meant[uint16(n)]; why != "" && !own[uint16(n)] {
			c.add("", p.Key(), fmt.Sprintf("spec.portLevelMtls.%d", n), "name the port that the pods listen on", "%s", why)
		}
	}
}

func sortedPorts[V any](m map[uint32]V) []uint32 {
	var ports []uint32
	for n := range m {
		ports = append(ports, n)
	}
	slices.Sort(ports)
	return ports
}
