package agent

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/carrick-mesh/carrick/certs"
)

// Bounds on what comes from the network or a mounted file.
const (
	maxMessage     = 256 << 20        // of xDS: 10,000 services in one state-of-the-world response
	maxFile        = 1 << 20          // a token, a bundle of roots
	connectTimeout = 10 * time.Second // TCP and TLS to the control plane
)

// endpoint is one address of a control plane, and how to be someone there.
type endpoint struct {
	address   string // HOST:PORT
	plaintext bool
	rootFile  string                     // PEM: who may sign the server's certificate
	roots     func() []*x509.Certificate // and who else; nil: nobody
	tokenFile string                     // who we are, a JWT; the file may be absent
	clusterID string
}

// dial returns a connection that trusts what the root file and roots say now. It connects at the
// first call.
func (e endpoint) dial() (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if !e.plaintext {
		roots, err := readCertificates(e.rootFile)
		if err != nil {
			return nil, err
		}
		if e.roots != nil { // the kubelet renews the file a minute after the mesh has changed its roots
			roots = union(roots, e.roots())
		}
		creds = credentials.NewTLS(clientTLS(e.address, e.rootFile, roots))
	}
	return grpc.NewClient("passthrough:///"+e.address,
		grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithSharedWriteBuffer(true),
		grpc.WithReadBufferSize(16<<10), grpc.WithWriteBufferSize(16<<10),
		grpc.WithUserAgent("carrick-proxy"))
}

// authorize adds the token, as it is in the file now, and the cluster to the metadata of a call.
func (e endpoint) authorize(ctx context.Context) (context.Context, error) {
	md := metadata.MD{}
	if e.clusterID != "" {
		md.Set("clusterid", e.clusterID)
	}
	token, err := readFile(e.tokenFile)
	switch {
	case err == nil && !e.plaintext:
		md.Set("authorization", "Bearer "+strings.TrimSpace(string(token)))
	case err == nil, e.tokenFile == "", errors.Is(err, fs.ErrNotExist):
	default:
		return nil, fmt.Errorf("reading the token: %w", err)
	}
	return metadata.NewOutgoingContext(ctx, md), nil
}

// serverName is the name that the certificate of a control plane at that address must have.
func serverName(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	if host == "" || host == "localhost" || net.ParseIP(host) != nil {
		return "istiod.istio-system.svc"
	}
	return host
}

// clientTLS verifies as crypto/tls does, but an error says which roots are trusted here, which
// one the server has, and what to do.
func clientTLS(address, rootFile string, roots []*x509.Certificate) *tls.Config {
	name := serverName(address)
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         name,
		InsecureSkipVerify: true, // verified below, by the same rules
		VerifyConnection: func(cs tls.ConnectionState) error {
			opts := x509.VerifyOptions{DNSName: name, Roots: pool(roots), Intermediates: pool(cs.PeerCertificates[1:])}
			_, err := cs.PeerCertificates[0].Verify(opts)
			if ua := (x509.UnknownAuthorityError{}); errors.As(err, &ua) {
				return fmt.Errorf("the control plane at %s is signed by another root: %s; trusted here (%s): %s. "+
					"Fix: this pod's ConfigMap istio-ca-root-cert must be of the mesh that %s belongs to; "+
					"clusters of one mesh need Secret cacerts made from one root",
					address, describe(last(cs.PeerCertificates)), rootFile, describe(roots...), address)
			}
			return err
		},
	}
}

// union returns the certificates of both lists, each once.
func union(a, b []*x509.Certificate) []*x509.Certificate {
	a = slices.Clone(a)
	for _, c := range b {
		if !slices.ContainsFunc(a, c.Equal) {
			a = append(a, c)
		}
	}
	return a
}

func last[T any](s []T) T { return s[len(s)-1] }

func pool(all []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range all {
		p.AddCert(c)
	}
	return p
}

// describe names certificates by subject and SHA-256 fingerprint; of one that is not its own
// issuer it names the issuer too, for its fingerprint cannot be known.
func describe(all ...*x509.Certificate) string {
	var l []string
	for _, c := range all {
		sum := sha256.Sum256(c.Raw)
		s := fmt.Sprintf("%q (SHA-256 %s)", c.Subject, hex.EncodeToString(sum[:]))
		if !selfSigned(c) {
			s += fmt.Sprintf(" issued by %q", c.Issuer)
		}
		l = append(l, s)
	}
	if l == nil {
		return "none"
	}
	return strings.Join(l, ", ")
}

func selfSigned(c *x509.Certificate) bool { return string(c.RawIssuer) == string(c.RawSubject) }

// readCertificates reads a PEM file of one or more certificates.
func readCertificates(path string) ([]*x509.Certificate, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading roots: %w", err)
	}
	roots, err := certs.Certificates(b)
	if err != nil {
		return nil, fmt.Errorf("roots in %s: %w", path, err)
	}
	return roots, nil
}

// readFile reads a mounted file of bounded size.
func readFile(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err == nil && len(b) > maxFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxFile)
	}
	return b, err
}
