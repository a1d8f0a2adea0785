package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net"
	"net/url"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	pb "istio.io/api/security/v1alpha1"

	"github.com/carrick-mesh/carrick/certs"
	"github.com/carrick-mesh/carrick/identity"
)

var sleeper = Caller{Identity: identity.Identity{TrustDomain: "cluster.local", Namespace: "sample", ServiceAccount: "sleep"}, Cluster: "cluster1", Pod: "sleep-1"}

// oneToken accepts token "good" of cluster1.
type oneToken struct{}

func (oneToken) Authenticate(_ context.Context, token, cluster string) (Caller, error) {
	if token != "good" || cluster != "cluster1" {
		return Caller{}, errors.New("unknown token")
	}
	return sleeper, nil
}

func csr(t *testing.T, key any, uris ...string) string {
	t.Helper()
	tmpl := &x509.CertificateRequest{}
	for _, u := range uris {
		p, err := url.Parse(u)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, p)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// The whole way over TLS: the serving certificate verifies with the published roots, a token
// gives its own identity, and nothing else.
func TestCreateCertificate(t *testing.T) {
	m := &memory{}
	_, files := plugged(t, "cluster1")
	m.put(PluggedInSecret, files)
	a, stop := start(t, m)
	defer stop()

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(a.Serving(ServiceHosts("istiod", "istio-system", "cluster.local")...).TLSConfig())))
	a.Register(srv, oneToken{})
	go srv.Serve(l)
	defer srv.Stop()

	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(a.Bundle().PEM)) {
		t.Fatal("no roots in the bundle")
	}
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "istiod.istio-system.svc"})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := pb.NewIstioCertificateServiceClient(conn)

	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	weak, _ := rsa.GenerateKey(rand.Reader, 1024)
	good := csr(t, ec, sleeper.Identity.String())
	tests := []struct {
		name           string
		token, cluster string
		req            *pb.IstioCertificateRequest
		code           codes.Code
		ttl            time.Duration
	}{
		{"default validity", "good", "cluster1", &pb.IstioCertificateRequest{Csr: good}, codes.OK, 24 * time.Hour},
		{"no SAN asked", "good", "cluster1", &pb.IstioCertificateRequest{Csr: csr(t, ec)}, codes.OK, 24 * time.Hour},
		{"former trust domain", "good", "cluster1", &pb.IstioCertificateRequest{Csr: csr(t, ec, "spiffe://old/ns/sample/sa/sleep")}, codes.OK, 24 * time.Hour},
		{"one hour", "good", "cluster1", &pb.IstioCertificateRequest{Csr: good, ValidityDuration: 3600}, codes.OK, time.Hour},
		{"a century is bounded", "good", "cluster1", &pb.IstioCertificateRequest{Csr: good, ValidityDuration: 1 << 60}, codes.OK, 24 * time.Hour},
		{"no token", "", "cluster1", &pb.IstioCertificateRequest{Csr: good}, codes.Unauthenticated, 0},
		{"bad token", "bad", "cluster1", &pb.IstioCertificateRequest{Csr: good}, codes.Unauthenticated, 0},
		{"token of another cluster", "good", "cluster2", &pb.IstioCertificateRequest{Csr: good}, codes.Unauthenticated, 0},
		{"another identity", "good", "cluster1", &pb.IstioCertificateRequest{Csr: csr(t, ec, "spiffe://cluster.local/ns/sample/sa/admin")}, codes.PermissionDenied, 0},
		{"impersonation", "good", "cluster1", &pb.IstioCertificateRequest{Csr: good, Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"ImpersonatedIdentity": structpb.NewStringValue("spiffe://cluster.local/ns/a/sa/b")}}}, codes.PermissionDenied, 0},
		{"no csr", "good", "cluster1", &pb.IstioCertificateRequest{}, codes.InvalidArgument, 0},
		{"weak key", "good", "cluster1", &pb.IstioCertificateRequest{Csr: csr(t, weak)}, codes.InvalidArgument, 0},
		{"huge csr", "good", "cluster1", &pb.IstioCertificateRequest{Csr: string(make([]byte, maxCSR+1))}, codes.InvalidArgument, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx := metadata.AppendToOutgoingContext(t.Context(), "clusterid", tt.cluster)
			if tt.token != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+tt.token)
			}
			resp, err := client.CreateCertificate(ctx, tt.req)
			if status.Code(err) != tt.code {
				t.Fatalf("%v, want %s", err, tt.code)
			}
			if err == nil {
				checkChain(t, a, resp.CertChain, tt.ttl)
			}
		})
	}
}

func checkChain(t *testing.T, a *Authority, chain []string, ttl time.Duration) {
	t.Helper()
	if len(chain) != 3 {
		t.Fatalf("%d elements, want leaf, intermediate, roots", len(chain))
	}
	roots, mids := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(chain[2]))
	mids.AppendCertsFromPEM([]byte(chain[1]))
	list, err := certs.Certificates([]byte(chain[0]))
	if err != nil {
		t.Fatal(err)
	}
	leaf := list[0]
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: mids, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}); err != nil {
		t.Error(err)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != sleeper.Identity.String() || leaf.IsCA || len(leaf.DNSNames) != 0 {
		t.Errorf("SAN %v %v", leaf.URIs, leaf.DNSNames)
	}
	if got := leaf.NotAfter.Sub(leaf.NotBefore) - backdate; got != ttl {
		t.Errorf("valid for %s, want %s", got, ttl)
	}
	if got := hex.EncodeToString(leaf.AuthorityKeyId); got != a.Bundle().SignerKeyID {
		t.Errorf("AuthorityKeyId %s, the bundle says %s", got, a.Bundle().SignerKeyID)
	}
}

func issueFor(t *testing.T, a *Authority, csr string) []string {
	t.Helper()
	resp, err := a.issue(sleeper, &pb.IstioCertificateRequest{Csr: csr})
	if err != nil {
		t.Fatal(err)
	}
	return resp.CertChain
}

// A leaf never outlives any certificate above it.
func TestLeafIsClamped(t *testing.T) {
	root, _ := plugged(t, "x")
	s, err := ParsePluggedIn(under(t, root, IntermediateOptions{Cluster: "c", Days: 1}), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	der, err := s.sign(key.Public(), nil, nil, 48*time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	if !leaf.NotAfter.Equal(s.cert.NotAfter) {
		t.Errorf("leaf until %s, signer until %s", leaf.NotAfter, s.cert.NotAfter)
	}
	if _, err := s.sign(key.Public(), nil, nil, time.Hour, s.cert.NotAfter.Add(time.Second)); err == nil {
		t.Error("an expired signer signs")
	}
}

func BenchmarkIssue(b *testing.B) {
	root, err := NewRoot(RootOptions{Key: P256})
	if err != nil {
		b.Fatal(err)
	}
	i, err := NewIntermediate(*root, IntermediateOptions{Cluster: "c", Key: P256})
	if err != nil {
		b.Fatal(err)
	}
	s, err := ParsePluggedIn(i.Files(), time.Now())
	if err != nil {
		b.Fatal(err)
	}
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	for b.Loop() {
		if _, err := s.sign(key.Public(), nil, nil, time.Hour, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}
