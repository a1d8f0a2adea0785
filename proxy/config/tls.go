package config

import (
	"crypto/tls"
	"crypto/x509"
)

// TLS is what both sides of TLS contexts have. Immutable.
type TLS struct {
	Certificates []Certificate // empty: none
	Validation   *Validation   // nil: the peer is not verified
	ALPN         []string
	MinVersion   uint16   // crypto/tls numbers; default TLS 1.2
	MaxVersion   uint16   // default TLS 1.3
	Ciphers      []uint16 // for TLS 1.2, crypto/tls numbers; empty: defaults
	Curves       []uint16 // crypto/tls CurveID numbers; empty: defaults
}

// Certificate is a certificate with its key: by SDS name, or the pair itself, read from Chain and Key.
type Certificate struct {
	SDS   SecretRef
	Chain Data
	Key   Data
	Pair  *tls.Certificate // nil: it comes by SDS
}

// SecretRef names a secret.
type SecretRef struct {
	Name string // of the control plane's, of a static one, or of the agent's (SDS on its socket)
}

// Data is bytes in a file or inline.
type Data struct {
	File   string
	Inline []byte
}

// Validation says which peers are trusted.
type Validation struct {
	SDS             SecretRef // the roots, if Name is set
	CA              Data      // or here
	Anchors         *Anchors  // what CA and SystemRoots have; nil: any certificate is taken whose pins match
	CRL             Data
	Revoked         []*x509.RevocationList // what CRL has, beside those in CA
	LeafCRLOnly     bool                   // the lists are asked for the peer's own certificate only
	SANs            []SANMatcher           // any of these; empty: any name
	SPKI            []string               // base64 SHA-256 of the key; any of these, if not empty
	Hash            []string               // lower-case hex SHA-256 of the certificate; any of these, if not empty
	AllowExpired    bool
	SystemRoots     bool
	AcceptUntrusted bool // trust_chain_verification ACCEPT_UNTRUSTED
}

// SANKind is a kind of subject alternative name.
type SANKind uint8

// Kinds of SANs.
const (
	AnySAN SANKind = iota
	EmailSAN
	DNSSAN
	URISAN
	IPSAN
)

// SANMatcher matches a subject alternative name.
type SANMatcher struct {
	Kind SANKind
	StringMatcher
}

// DownstreamTLS is the server side.
type DownstreamTLS struct {
	TLS
	RequireClientCert bool
	RequireSNI        bool
	NoTickets         bool
}

// UpstreamTLS is the client side.
type UpstreamTLS struct {
	TLS
	SNI         string
	AutoHostSNI bool // the endpoint's hostname
	AutoSAN     bool // the peer must be valid for the SNI
}

// Secret is a secret that came as a resource. One of the two is set. Immutable.
type Secret struct {
	Name        string
	Certificate *Certificate
	Validation  *Validation
}
