package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/carrick-mesh/carrick/proxy/config"
)

// Secrets are certificates and roots by the names of SDS ("default", "ROOTCA"). Its methods are
// called at each handshake, from many goroutines, and must not block.
type Secrets interface {
	// KeyPair returns the certificate with its chain and key; nil if it has not come.
	KeyPair(name string) *tls.Certificate
	// Roots returns trust anchors, the same pointer until they change; nil if they have not come.
	Roots(name string) *Roots
}

// Roots are trust anchors. Immutable.
type Roots = config.Anchors

// NewRoots reads PEM: certificates, and revocation lists beside them.
func NewRoots(b []byte) (*Roots, error) { return config.ParseAnchors(b) }

type noSecrets struct{}

func (noSecrets) KeyPair(string) *tls.Certificate { return nil }
func (noSecrets) Roots(string) *Roots             { return nil }

// tlsContexts are the crypto/tls configurations of TLS contexts, made at the first use of each.
type tlsContexts struct {
	mu      sync.Mutex
	servers map[*config.DownstreamTLS]*serverTLS
	clients map[*config.UpstreamTLS]*clientTLS

	reported map[string]time.Time
}

// keep forgets contexts that cfg does not have.
func (t *tlsContexts) keep(cfg *config.Config) {
	servers, clients := map[*config.DownstreamTLS]*serverTLS{}, map[*config.UpstreamTLS]*clientTLS{}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range cfg.Listeners {
		for _, c := range append(slices.Clip(l.Chains), l.Default) {
			if c != nil && c.TLS != nil && t.servers[c.TLS] != nil {
				servers[c.TLS] = t.servers[c.TLS]
			}
		}
	}
	for _, c := range cfg.Clusters {
		if o := t.clients[c.TLS]; o != nil {
			clients[c.TLS] = o
		}
		for _, m := range c.SocketMatches {
			if o := t.clients[m.TLS]; o != nil {
				clients[m.TLS] = o
			}
		}
	}
	t.servers, t.clients = servers, clients
}

type serverTLS struct {
	cfg    *tls.Config
	noALPN *tls.Config // for clients that offer nothing that we speak
}

type clientTLS struct{ cfg *tls.Config }

func (t *tlsContexts) server(p *Proxy, c *config.DownstreamTLS) *tls.Config {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.servers[c]; s != nil {
		return s.cfg
	}
	cfg, v := p.tlsConfig(&c.TLS)
	switch {
	case c.RequireClientCert:
		cfg.ClientAuth = tls.RequireAnyClientCert
	case v != nil:
		cfg.ClientAuth = tls.RequestClientCert
	}
	// A resumed session would skip what rotates: certificates and roots.
	cfg.SessionTicketsDisabled = c.NoTickets || v != nil
	if v != nil {
		v.usage = x509.ExtKeyUsageClientAuth
		cfg.VerifyConnection = func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return nil // ClientAuth decided whether that may be
			}
			return v.verify(p, s)
		}
	}
	s := &serverTLS{cfg: cfg}
	s.noALPN = cfg.Clone()
	s.noALPN.NextProtos = nil
	requireSNI := c.RequireSNI
	cfg.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if requireSNI && h.ServerName == "" {
			return nil, errors.New("the client sent no server name, and the listener requires one")
		}
		// crypto/tls aborts where the lists do not overlap; Envoy (BoringSSL) goes on without.
		for _, a := range h.SupportedProtos {
			if slices.Contains(cfg.NextProtos, a) {
				return nil, nil
			}
		}
		return s.noALPN, nil
	}
	if t.servers == nil {
		t.servers = map[*config.DownstreamTLS]*serverTLS{}
	}
	t.servers[c] = s
	return cfg
}

// localURI returns the URI by which the certificate of a server names us.
func (t *tlsContexts) localURI(c *config.DownstreamTLS) string {
	t.mu.Lock()
	s := t.servers[c]
	t.mu.Unlock()
	if s == nil {
		return ""
	}
	k, err := s.cfg.GetCertificate(&tls.ClientHelloInfo{})
	if err != nil {
		return ""
	}
	return certificateURI(k)
}

// certificateURI returns the first URI that a certificate names.
func certificateURI(k *tls.Certificate) string {
	if k == nil || len(k.Certificate) == 0 {
		return ""
	}
	leaf := k.Leaf
	if leaf == nil {
		var err error
		if leaf, err = x509.ParseCertificate(k.Certificate[0]); err != nil {
			return ""
		}
	}
	if len(leaf.URIs) == 0 {
		return ""
	}
	return leaf.URIs[0].String()
}

// client returns the configuration for a connection.
func (t *tlsContexts) client(p *Proxy, c *config.UpstreamTLS, o dialOptions) *tls.Config {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.clients[c]
	if k == nil {
		cfg, v := p.tlsConfig(&c.TLS)
		cfg.ServerName = c.SNI
		cfg.InsecureSkipVerify = true // VerifyConnection does it
		autoSAN := c.AutoSAN
		if v != nil {
			v.usage = x509.ExtKeyUsageServerAuth
			cfg.VerifyConnection = func(s tls.ConnectionState) error {
				if err := v.verify(p, s); err != nil {
					return err
				}
				if autoSAN {
					return s.PeerCertificates[0].VerifyHostname(s.ServerName)
				}
				return nil
			}
		}
		k = &clientTLS{cfg}
		if t.clients == nil {
			t.clients = map[*config.UpstreamTLS]*clientTLS{}
		}
		t.clients[c] = k
	}
	if o.sni == "" && o.alpn == nil {
		return k.cfg
	}
	cfg := k.cfg.Clone()
	if o.sni != "" {
		cfg.ServerName = o.sni
	}
	if o.alpn != nil {
		cfg.NextProtos = o.alpn
	}
	return cfg
}

// tlsConfig makes what both sides have. The verifier is nil if the peer is not verified.
func (p *Proxy) tlsConfig(c *config.TLS) (*tls.Config, *verifier) {
	cfg := &tls.Config{
		MinVersion:   c.MinVersion,
		MaxVersion:   c.MaxVersion,
		CipherSuites: c.Ciphers,
		NextProtos:   c.ALPN,
		// One record for what one write carries: it is decrypted at once by the peer.
		DynamicRecordSizingDisabled: true,
	}
	for _, id := range c.Curves {
		cfg.CurvePreferences = append(cfg.CurvePreferences, tls.CurveID(id))
	}
	if len(c.Curves) == 0 {
		cfg.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384}
	}
	if len(c.Certificates) > 0 {
		gets := make([]func() (*tls.Certificate, error), len(c.Certificates))
		for i := range c.Certificates {
			gets[i] = p.keyPair(&c.Certificates[i])
		}
		cfg.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			var first *tls.Certificate
			for _, get := range gets {
				k, err := get()
				if err != nil {
					return nil, err
				}
				if len(gets) == 1 || h.SupportsCertificate(k) == nil {
					return k, nil
				}
				if first == nil {
					first = k
				}
			}
			return first, nil
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return gets[0]() }
	}
	if c.Validation == nil {
		return cfg, nil
	}
	return cfg, &verifier{c: c.Validation}
}

// keyPair returns a function that gives the certificate as it is now.
func (p *Proxy) keyPair(c *config.Certificate) func() (*tls.Certificate, error) {
	if c.Pair != nil {
		return func() (*tls.Certificate, error) { return c.Pair, nil }
	}
	name := c.SDS.Name
	return func() (*tls.Certificate, error) {
		if s := p.snap.Load().cfg.Secrets[name]; s != nil && s.Certificate != nil {
			return s.Certificate.Pair, nil
		}
		if k := p.secrets.KeyPair(name); k != nil {
			return k, nil
		}
		return nil, fmt.Errorf("certificate %q has not come yet", name)
	}
}
