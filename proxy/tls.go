package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/carrick-mesh/carrick/certs"
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
type Roots struct {
	Pool         *x509.CertPool
	Certificates []*x509.Certificate
	Revoked      []*x509.RevocationList // lists that chains are checked against, none if empty
}

// NewRoots reads PEM certificates.
func NewRoots(b []byte) (*Roots, error) {
	all, lists, err := certs.Anchors(b)
	if err != nil {
		return nil, fmt.Errorf("the PEM of the trust anchors: %w", err)
	}
	r := &Roots{Pool: x509.NewCertPool(), Certificates: all, Revoked: lists}
	for _, c := range all {
		r.Pool.AddCert(c)
	}
	return r, nil
}

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

func (t *tlsContexts) server(p *Proxy, c *config.DownstreamTLS) (*tls.Config, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.servers[c]; s != nil {
		return s.cfg, nil
	}
	cfg, v, err := p.tlsConfig(&c.TLS)
	if err != nil {
		return nil, err
	}
	if len(c.Certificates) == 0 {
		return nil, errors.New("the TLS context has no certificate")
	}
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
	return cfg, nil
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
func (t *tlsContexts) client(p *Proxy, c *config.UpstreamTLS, o dialOptions) (*tls.Config, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.clients[c]
	if k == nil {
		cfg, v, err := p.tlsConfig(&c.TLS)
		if err != nil {
			return nil, err
		}
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
		return k.cfg, nil
	}
	cfg := k.cfg.Clone()
	if o.sni != "" {
		cfg.ServerName = o.sni
	}
	if o.alpn != nil {
		cfg.NextProtos = o.alpn
	}
	return cfg, nil
}

// tlsConfig makes what both sides have. The verifier is nil if the peer is not verified.
func (p *Proxy) tlsConfig(c *config.TLS) (*tls.Config, *verifier, error) {
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
			get, err := p.keyPair(&c.Certificates[i])
			if err != nil {
				return nil, nil, err
			}
			gets[i] = get
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
		return cfg, nil, nil
	}
	v := &verifier{c: c.Validation}
	if d := c.Validation.CA; d.File != "" || len(d.Inline) > 0 {
		b, err := read(d)
		if err != nil {
			return nil, nil, fmt.Errorf("trusted_ca: %w", err)
		}
		if v.roots, err = NewRoots(b); err != nil {
			return nil, nil, fmt.Errorf("trusted_ca: %w", err)
		}
	}
	if c.Validation.SystemRoots {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, nil, fmt.Errorf("system roots: %w", err)
		}
		v.roots = &Roots{Pool: pool}
	}
	return cfg, v, nil
}

func read(d config.Data) ([]byte, error) {
	if d.File != "" {
		return os.ReadFile(d.File)
	}
	return d.Inline, nil
}

// keyPair returns a function that gives the certificate as it is now.
func (p *Proxy) keyPair(c *config.Certificate) (func() (*tls.Certificate, error), error) {
	if c.SDS.Name == "" {
		k, err := loadKeyPair(c)
		if err != nil {
			return nil, err
		}
		return func() (*tls.Certificate, error) { return k, nil }, nil
	}
	name := c.SDS.Name
	var mu sync.Mutex
	var from *config.Secret
	var made *tls.Certificate
	return func() (*tls.Certificate, error) {
		if s := p.snap.Load().cfg.Secrets[name]; s != nil && s.Certificate != nil {
			mu.Lock()
			defer mu.Unlock()
			if s != from {
				k, err := loadKeyPair(s.Certificate)
				if err != nil {
					return nil, fmt.Errorf("secret %q: %w", name, err)
				}
				from, made = s, k
			}
			return made, nil
		}
		if k := p.secrets.KeyPair(name); k != nil {
			return k, nil
		}
		return nil, fmt.Errorf("certificate %q has not come yet", name)
	}, nil
}

func loadKeyPair(c *config.Certificate) (*tls.Certificate, error) {
	chain, err := read(c.Chain)
	if err != nil {
		return nil, fmt.Errorf("certificate_chain: %w", err)
	}
	key, err := read(c.Key)
	if err != nil {
		return nil, fmt.Errorf("private_key: %w", err)
	}
	k, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, fmt.Errorf("certificate and key: %w", err)
	}
	return &k, nil
}
