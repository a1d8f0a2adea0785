package agent

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	cds "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	sds "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/carrick-mesh/carrick/resource"
)

// sockets starts the agent's sockets before a control plane and returns connections to them.
func sockets(t *testing.T) (cp *controlPlane, certs *Certificates, sdsConn, xdsConn *grpc.ClientConn) {
	t.Helper()
	root := newRoot(t, "Root")
	cp = newControlPlane(t, root)
	dir, rootFile, tokenFile := folder(t, root.cert)
	e := endpoint{address: cp.address, rootFile: rootFile, tokenFile: tokenFile, clusterID: "cluster1"}
	certs = NewCertificates(CertificateOptions{Identity: sleep, Sign: certificateService(e), RootFile: rootFile, Logger: logger(t)})
	start(t, certs.Run)
	listening := make(chan struct{})
	start(t, func(ctx context.Context) error {
		sec := newSecrets(certs, logger(t))
		r := &relay{upstream: e, certs: certs, settle: sec.settle, log: logger(t)}
		return serveSockets(ctx, dir, map[string]*grpc.Server{sdsSocket: sec.server(), xdsSocket: r.server()}, 0o600, func() { close(listening) })
	})
	<-listening
	dial := func(name string) *grpc.ClientConn {
		c, err := grpc.NewClient("unix://"+filepath.Join(dir, name), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	return cp, certs, dial("SDS"), dial("XDS")
}

func TestRelaySecrets(t *testing.T) {
	cp, certs, _, conn := sockets(t)
	another(t, certs, "")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ads, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *discovery.DeltaDiscoveryRequest) {
		t.Helper()
		if err := ads.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	next := newRoot(t, "Next")
	cp.mu.Lock()
	first := cp.signer.cert
	cp.mu.Unlock()
	cp.setRoots("1", string(encodePEM(first, next.cert)))
	cp.set(resource.SecretType, "kubernetes://own", "1", &tlspb.Secret{Name: "kubernetes://own"})
	// The proxy subscribes to a secret of its own in its first message, so that the server may
	// answer both with one response.
	send(&discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: "router~10.0.0.1~a.b~b.svc.cluster.local"}, TypeUrl: resource.SecretType, ResourceNamesSubscribe: []string{"kubernetes://own"}})
	resp, err := ads.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Resources) != 1 || resp.Resources[0].Name != "kubernetes://own" {
		t.Fatalf("the proxy got %v", resp.Resources)
	}
	send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.SecretType, ResponseNonce: resp.Nonce})
	eventually(t, "the roots", func() error {
		if cr, _ := certs.Current(); len(cr.Roots) != 2 {
			return errors.New("one root")
		}
		return nil
	})

	// What cannot be used is refused, and the last roots stay.
	cp.setRoots("2", "junk")
	eventually(t, "the refusal", func() error {
		cp.mu.Lock()
		defer cp.mu.Unlock()
		for _, r := range cp.requests {
			if r.TypeUrl == resource.SecretType && r.ErrorDetail != nil {
				return nil
			}
		}
		return errors.New("none yet")
	})
	if cr, _ := certs.Current(); len(cr.Roots) != 2 {
		t.Errorf("%d roots after junk, want the last two", len(cr.Roots))
	}

	// Both in one response: each gets its own.
	cp.mu.Lock()
	cp.resources[resource.SecretType]["kubernetes://own"].Version = "2"
	cp.mu.Unlock()
	cp.setRoots("3", string(encodePEM(first)))
	if resp, err = ads.Recv(); err != nil {
		t.Fatal(err)
	}
	if len(resp.Resources) != 1 || resp.Resources[0].Version != "2" {
		t.Errorf("the proxy got %v", resp.Resources)
	}
	eventually(t, "the roots", func() error {
		if cr, _ := certs.Current(); len(cr.Roots) != 1 {
			return errors.New("two roots")
		}
		return nil
	})
}

func TestRelayOthers(t *testing.T) {
	_, _, sdsConn, conn := sockets(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	// A state-of-the-world stream passes through; this control plane does not have that form.
	ads, err := discovery.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ads.Recv(); status.Code(err) != codes.Unimplemented {
		t.Errorf("StreamAggregatedResources: %v, want the control plane's own answer", err)
	}
	if _, err := cds.NewClusterDiscoveryServiceClient(conn).FetchClusters(ctx, &discovery.DiscoveryRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("another service: %v", err)
	}
	s, err := sds.NewSecretDiscoveryServiceClient(sdsConn).StreamSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&discovery.DiscoveryRequest{TypeUrl: resource.SecretType, ResourceNames: []string{"other"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a secret that the agent has not: %v", err)
	}
}

// settle returns when the proxy has acknowledged the roots of the moment, not before.
func TestSettle(t *testing.T) {
	root := newRoot(t, "Root")
	cp := newControlPlane(t, root)
	_, rootFile, tokenFile := folder(t, root.cert)
	e := endpoint{address: cp.address, rootFile: rootFile, tokenFile: tokenFile}
	certs := NewCertificates(CertificateOptions{Identity: sleep, Sign: certificateService(e), RootFile: rootFile, Logger: logger(t)})
	start(t, certs.Run)
	cr := another(t, certs, "")
	s := newSecrets(certs, logger(t))
	now, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.settle(now); err != nil {
		t.Errorf("nobody uses the roots: %v", err)
	}
	s.update(func() { s.applied[1] = string(cr.RootsPEM) })
	if err := s.settle(now); err != nil {
		t.Errorf("the proxy has the roots: %v", err)
	}
	if err := certs.SetRoots(encodePEM(root.cert, newRoot(t, "Next").cert)); err != nil {
		t.Fatal(err)
	}
	if err := s.settle(now); err == nil {
		t.Error("the proxy has the roots from before: no error")
	}
	done := make(chan error, 1)
	go func() { done <- s.settle(context.Background()) }()
	cr, _ = certs.Current()
	s.update(func() { s.applied[1] = string(cr.RootsPEM) })
	if err := <-done; err != nil {
		t.Error(err)
	}
}
