package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	xdscreds "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	grpcxds "google.golang.org/grpc/xds"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/carrick-mesh/carrick/resource"
)

// wholeState is the state-of-the-world form of a controlPlane's streams.
type wholeState struct {
	mu      sync.Mutex
	answers []*discovery.DiscoveryRequest // to secrets
}

func (w *wholeState) serve(cp *controlPlane, stream discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	names, sent := map[string][]string{}, map[string]string{}
	reqs := receive(stream.Context(), stream.Recv)
	for nonce := 0; ; {
		cp.mu.Lock()
		changed := cp.changed
		var out []*discovery.DiscoveryResponse
		for typ, wanted := range names {
			resp := &discovery.DiscoveryResponse{TypeUrl: typ}
			for _, n := range wanted {
				if r := cp.resources[typ][n]; r != nil {
					resp.Resources, resp.VersionInfo = append(resp.Resources, r.Resource), resp.VersionInfo+r.Version
				}
			}
			if key := strings.Join(wanted, ",") + resp.VersionInfo; len(resp.Resources) == len(wanted) && sent[typ] != key {
				sent[typ] = key
				nonce++
				resp.Nonce = fmt.Sprint(nonce)
				out = append(out, resp)
			}
		}
		cp.mu.Unlock()
		for _, resp := range out {
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-changed:
		case r, ok := <-reqs:
			if !ok {
				return nil
			}
			names[r.TypeUrl] = r.ResourceNames
			if r.TypeUrl == resource.SecretType && r.ResponseNonce != "" {
				w.mu.Lock()
				w.answers = append(w.answers, r)
				w.mu.Unlock()
			}
		}
	}
}

// last returns the last answer to a secret.
func (w *wholeState) last() *discovery.DiscoveryRequest {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.answers) == 0 {
		return nil
	}
	return w.answers[len(w.answers)-1]
}

func fromJSON[T proto.Message](t *testing.T, m T, format string, args ...any) T {
	t.Helper()
	if err := protojson.Unmarshal([]byte(fmt.Sprintf(format, args...)), m); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestProxyless is grpc-go's own xDS client beside an agent: configuration over the socket, mutual TLS
// by the files, through a change of the mesh's root.
func TestProxyless(t *testing.T) {
	root, next := newRoot(t, "Root A"), newRoot(t, "Root B")
	cp := newControlPlane(t, root)
	cp.whole = &wholeState{}
	cp.setRoots("1", string(encodePEM(root.cert)))
	dir, rootFile, tokenFile := folder(t, root.cert)
	statusPort := freePorts(t, 1)[0]
	o := Options{Engine: None, Version: "1.2.3", Pod: testPod(), Meta: testMeta(), RootFile: rootFile, TokenFile: tokenFile, Logger: logger(t),
		Config: mustConfig(t, fmt.Sprintf(`{"discoveryAddress":%q,"configPath":%q,"statusPort":%d,"terminationDrainDuration":"0s"}`, cp.address, dir, statusPort)),
		GRPC:   GRPCFiles{Bootstrap: filepath.Join(dir, "b.json"), Certificates: filepath.Join(dir, "data")}}
	stop := start(t, func(ctx context.Context) error { return Run(ctx, o) })
	eventually(t, "ready", func() error {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz/ready", statusPort))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 {
			return errors.New(string(b))
		}
		return nil
	})
	for file, mode := range map[string]os.FileMode{"XDS": 0o660, "data/key.pem": 0o640, "data/cert-chain.pem": 0o644, "data/root-cert.pem": 0o644, "b.json": 0o644} {
		fi, err := os.Stat(filepath.Join(dir, file))
		if err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v, want mode %v", file, fi.Mode(), err, mode)
		}
	}

	// A server of the mesh, whose certificate may be changed.
	id, err := url.Parse(sleep.String())
	if err != nil {
		t.Fatal(err)
	}
	var serving atomic.Pointer[tls.Certificate]
	serveAs := func(ca *authority) {
		a := issue(t, ca, &x509.Certificate{URIs: []*url.URL{id}, NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, nil)
		serving.Store(&tls.Certificate{Certificate: [][]byte{a.cert.Raw}, PrivateKey: a.key})
	}
	serveAs(root)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var who atomic.Value
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool([]*x509.Certificate{root.cert, next.cert}),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return serving.Load(), nil }})),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: 100 * time.Millisecond}),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			p, _ := peer.FromContext(ctx)
			who.Store(p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0].URIs[0].String())
			return next(ctx, req)
		}))
	healthpb.RegisterHealthServer(g, health.NewServer())
	go g.Serve(l)
	t.Cleanup(g.Stop)

	const tlsContext = `{"name":"envoy.transport_sockets.tls","typed_config":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext","common_tls_context":{
"tls_certificate_provider_instance":{"instance_name":"default"},"validation_context":{
"ca_certificate_provider_instance":{"instance_name":"default"},"match_typed_subject_alt_names":[{"san_type":"URI","matcher":{"exact":%q}}]}}}}`
	cp.set(resource.ListenerType, "hello:80", "1", fromJSON(t, &listener.Listener{}, `{"name":"hello:80","api_listener":{"api_listener":{
"@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager","stat_prefix":"x",
"route_config":{"name":"r","virtual_hosts":[{"name":"v","domains":["*"],"routes":[{"match":{"prefix":""},"route":{"cluster":"c"}}]}]},
"http_filters":[{"name":"router","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}}`))
	cp.set(resource.ClusterType, "c", "1", fromJSON(t, &cluster.Cluster{},
		`{"name":"c","type":"EDS","eds_cluster_config":{"service_name":"c","eds_config":{"ads":{}}},"transport_socket":`+tlsContext+`}`, sleep.String()))
	cp.set(resource.EndpointType, "c", "1", fromJSON(t, &endpointv3.ClusterLoadAssignment{},
		`{"cluster_name":"c","endpoints":[{"locality":{"region":"r"},"load_balancing_weight":1,"lb_endpoints":[{"endpoint":{"address":{"socket_address":{"address":"127.0.0.1","port_value":%d}}}}]}]}`, l.Addr().(*net.TCPAddr).Port))

	b, err := os.ReadFile(o.GRPC.Bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	resolver, err := grpcxds.NewXDSResolverWithConfigForTesting(b)
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	creds, err := xdscreds.NewClientCredentials(xdscreds.ClientOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("xds:///hello:80", grpc.WithTransportCredentials(creds), grpc.WithResolvers(resolver))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	call := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
		return err
	}
	eventually(t, "a call", call)
	if who.Load() != sleep.String() {
		t.Errorf("the server sees %v, want %s", who.Load(), sleep)
	}

	// The next root is published: the files have it before the control plane hears that it is in force.
	both := string(encodePEM(root.cert, next.cert))
	cp.setRoots("2", both)
	eventually(t, "the answer to the roots", func() error {
		if a := cp.whole.last(); a == nil || a.VersionInfo != "2" || a.ErrorDetail != nil {
			return fmt.Errorf("%v", a)
		}
		return nil
	})
	if got, err := os.ReadFile(filepath.Join(o.GRPC.Certificates, "root-cert.pem")); string(got) != both {
		t.Errorf("root-cert.pem: %q, %v", got, err)
	}
	serveAs(next)
	eventually(t, "calls to a server under the next root, one after another", func() error {
		for range 3 {
			if err := call(); err != nil {
				return err
			}
		}
		return nil
	})

	// What cannot be used is refused, and the last good version named.
	cp.setRoots("3", "junk")
	eventually(t, "the refusal", func() error {
		if a := cp.whole.last(); a.ErrorDetail == nil || a.VersionInfo != "2" || !slices.Equal(a.ResourceNames, []string{rootsName}) {
			return fmt.Errorf("%v", a)
		}
		return nil
	})
	if err := call(); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// StreamAggregatedResources is there where a test says so.
func (cp *controlPlane) StreamAggregatedResources(stream discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	if cp.whole == nil {
		return status.Error(codes.Unimplemented, "not in this test")
	}
	return cp.whole.serve(cp, stream)
}
