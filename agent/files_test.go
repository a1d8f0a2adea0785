package agent

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"path/filepath"
	"testing"
	"time"

	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	sds "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/carrick-mesh/carrick/resource"
)

func keyPEM(t *testing.T, a *authority) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// Files that a configuration names are read when they are asked for, again when they are renewed, and what is
// no good does not displace what was.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	chain, key, roots := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem"), filepath.Join(dir, "r.pem")
	one, two := newRoot(t, "One"), newRoot(t, "Two")
	f := newFiles(logger(t))
	s := &workloadSecrets{files: f}
	pair, anchors := fileCertificate+chain+"~"+key, fileRoots+roots
	f.Watch(pair)
	f.Watch(anchors)
	if s.KeyPair(pair) != nil || s.Roots(anchors) != nil {
		t.Error("files that do not exist mean something")
	}

	write(t, chain, string(encodePEM(one.cert)))
	write(t, key, keyPEM(t, one))
	write(t, roots, string(encodePEM(one.cert)))
	f.refreshAll()
	if k := s.KeyPair(pair); k == nil || !k.Leaf.Equal(one.cert) {
		t.Errorf("certificate %v, want that of the file", k)
	}
	held := s.Roots(anchors)
	if held == nil || len(held.Certificates) != 1 {
		t.Fatalf("roots %v, want that of the file", held)
	}
	f.refreshAll()
	if s.Roots(anchors) != held {
		t.Error("roots that are as they were are others")
	}

	write(t, chain, string(encodePEM(two.cert))) // its key has not come yet
	write(t, roots, "junk")
	f.refreshAll()
	if !s.KeyPair(pair).Leaf.Equal(one.cert) || s.Roots(anchors) != held {
		t.Error("a bad file replaced the last good one")
	}
	write(t, key, keyPEM(t, two))
	write(t, roots, string(encodePEM(one.cert, two.cert)))
	f.refreshAll()
	if !s.KeyPair(pair).Leaf.Equal(two.cert) || len(s.Roots(anchors).Certificates) != 2 {
		t.Error("renewed files are not taken up")
	}
}

// Envoy gets files as secrets, when they are there and again when they are renewed.
func TestFilesBySDS(t *testing.T) {
	root := newRoot(t, "Root")
	dir, rootFile, _ := folder(t, root.cert)
	s := newSecrets(NewCertificates(CertificateOptions{Identity: sleep, RootFile: rootFile, Logger: logger(t)}), logger(t))
	listening := make(chan struct{})
	start(t, func(ctx context.Context) error {
		return serveSockets(ctx, dir, map[string]*grpc.Server{sdsSocket: s.server()}, 0o600, func() { close(listening) })
	})
	<-listening
	conn, err := grpc.NewClient("unix://"+filepath.Join(dir, sdsSocket), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	stream, err := sds.NewSecretDiscoveryServiceClient(conn).StreamSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "ca.pem")
	write(t, file, string(encodePEM(root.cert)))
	if err := stream.Send(&discovery.DiscoveryRequest{TypeUrl: resource.SecretType, ResourceNames: []string{fileRoots + file}}); err != nil {
		t.Fatal(err)
	}
	want := func(pem string) {
		t.Helper()
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		secret := &tlspb.Secret{}
		if err := r.Resources[0].UnmarshalTo(secret); err != nil {
			t.Fatal(err)
		}
		if got := string(secret.GetValidationContext().GetTrustedCa().GetInlineBytes()); secret.Name != fileRoots+file || got != pem {
			t.Errorf("secret %s is %q, want %q", secret.Name, got, pem)
		}
		if err := stream.Send(&discovery.DiscoveryRequest{TypeUrl: resource.SecretType, ResourceNames: []string{secret.Name}, ResponseNonce: r.Nonce}); err != nil {
			t.Fatal(err)
		}
	}
	want(string(encodePEM(root.cert)))
	next := string(encodePEM(newRoot(t, "Next").cert))
	write(t, file, next)
	s.files.refreshAll()
	want(next)
}
