package agent

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/vishvananda/netlink"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	pb "istio.io/api/security/v1alpha1"

	"github.com/carrick-mesh/carrick/certs"
	"github.com/carrick-mesh/carrick/resource"
)

// The tests run in a network namespace of their own, where root may make one: then the ports that
// freePorts returns stay free.
func TestMain(m *testing.M) {
	const inside = "AGENT_TEST_NETNS"
	if os.Getuid() != 0 || os.Getenv(inside) != "" {
		if os.Getenv(inside) != "" {
			lo, err := netlink.LinkByName("lo")
			if err == nil {
				err = netlink.LinkSetUp(lo)
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "setting lo up:", err)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is of the thread
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

var nextPort atomic.Int32

// freePorts returns ports that nothing listens on, below those that the kernel gives out.
func freePorts(t *testing.T, n int) (ps []int) {
	t.Helper()
	for len(ps) < n {
		port := 20000 + int(nextPort.Add(1))
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		l.Close()
		ps = append(ps, port)
	}
	return ps
}

// authority is a certificate and its key.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newRoot(t *testing.T, name string) *authority {
	t.Helper()
	return issue(t, nil, &x509.Certificate{Subject: pkix.Name{Organization: []string{"Test"}, CommonName: name},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, NotAfter: time.Now().Add(time.Hour)}, nil)
}

// issue signs the template, with itself if by is nil, for pub or a new key.
func issue(t *testing.T, by *authority, template *x509.Certificate, pub crypto.PublicKey) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key}
	if by == nil {
		by = &authority{template, key}
	}
	if pub == nil {
		pub = key.Public()
	}
	template.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<62))
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-2 * time.Minute)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, pub, by.key)
	if err != nil {
		t.Error(err) // may be on a server's goroutine
		return nil
	}
	a.cert, err = x509.ParseCertificate(der)
	if err != nil {
		t.Error(err)
	}
	return a
}

// controlPlane is the other side: a certificate service and an aggregated discovery service on
// one TLS port, as 15012 of a control plane is.
type controlPlane struct {
	pb.UnimplementedIstioCertificateServiceServer
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	t       *testing.T
	address string

	mu        sync.Mutex
	serving   *tls.Certificate
	signer    *authority
	roots     []*x509.Certificate // answered after the leaf, in one part
	ttl       time.Duration
	fail      error
	asked     []*x509.CertificateRequest
	metadata  []metadata.MD                             // of every call
	resources map[string]map[string]*discovery.Resource // by type and name
	changed   chan struct{}
	requests  []*discovery.DeltaDiscoveryRequest
	nodes     []*core.Node
	acks      map[string]string // last acknowledged nonce by type; "" if refused
	streams   map[int]context.CancelFunc
	whole     *wholeState // nil: no streams of the whole state
}

// newControlPlane starts one whose serving certificate, and leaves, are signed by ca.
func newControlPlane(t *testing.T, ca *authority) *controlPlane {
	t.Helper()
	cp := &controlPlane{t: t, signer: ca, roots: []*x509.Certificate{ca.cert}, ttl: time.Hour,
		resources: map[string]map[string]*discovery.Resource{}, changed: make(chan struct{}), acks: map[string]string{}, streams: map[int]context.CancelFunc{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cp.address = l.Addr().String()
	cp.serveAs(ca)
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		cp.mu.Lock()
		defer cp.mu.Unlock()
		return cp.serving, nil
	}})))
	pb.RegisterIstioCertificateServiceServer(s, cp)
	discovery.RegisterAggregatedDiscoveryServiceServer(s, cp)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return cp
}

// serveAs gives the control plane a serving certificate of that root.
func (cp *controlPlane) serveAs(ca *authority) {
	a := issue(cp.t, ca, &x509.Certificate{DNSNames: []string{"istiod.istio-system.svc"}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, nil)
	cp.mu.Lock()
	defer cp.mu.Unlock()
	cp.serving = &tls.Certificate{Certificate: [][]byte{a.cert.Raw, ca.cert.Raw}, PrivateKey: a.key}
}

func (cp *controlPlane) CreateCertificate(ctx context.Context, r *pb.IstioCertificateRequest) (*pb.IstioCertificateResponse, error) {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	md, _ := metadata.FromIncomingContext(ctx)
	cp.metadata = append(cp.metadata, md)
	if cp.fail != nil {
		return nil, cp.fail
	}
	block, _ := pem.Decode([]byte(r.Csr))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	cp.asked = append(cp.asked, csr)
	leaf := issue(cp.t, cp.signer, &x509.Certificate{URIs: csr.URIs, NotAfter: time.Now().Add(cp.ttl),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, csr.PublicKey)
	if leaf == nil {
		return nil, errors.New("not signed")
	}
	return &pb.IstioCertificateResponse{CertChain: []string{string(encodePEM(leaf.cert)), string(encodePEM(cp.roots...))}}, nil
}

// set publishes a resource.
func (cp *controlPlane) set(typeURL, name, version string, m proto.Message) {
	a, err := anypb.New(m)
	if err != nil {
		cp.t.Fatal(err)
	}
	cp.mu.Lock()
	defer cp.mu.Unlock()
	if cp.resources[typeURL] == nil {
		cp.resources[typeURL] = map[string]*discovery.Resource{}
	}
	cp.resources[typeURL][name] = &discovery.Resource{Name: name, Version: version, Resource: a}
	close(cp.changed)
	cp.changed = make(chan struct{})
}

// setRoots publishes the secret ROOTCA.
func (cp *controlPlane) setRoots(version, pem string) {
	cp.set(resource.SecretType, rootsName, version, &tlspb.Secret{Name: rootsName, Type: &tlspb.Secret_ValidationContext{
		ValidationContext: &tlspb.CertificateValidationContext{TrustedCa: &core.DataSource{
			Specifier: &core.DataSource_InlineBytes{InlineBytes: []byte(pem)}}}}})
}

// cut ends all streams.
func (cp *controlPlane) cut() {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	for _, cancel := range cp.streams {
		cancel()
	}
}

func (cp *controlPlane) DeltaAggregatedResources(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	cp.mu.Lock()
	id := len(cp.metadata)
	md, _ := metadata.FromIncomingContext(ctx)
	cp.metadata = append(cp.metadata, md)
	cp.streams[id] = cancel
	cp.mu.Unlock()
	type interest struct {
		all   bool
		names map[string]bool
		sent  map[string]string
	}
	subs := map[string]*interest{}
	reqs := receive(ctx, stream.Recv)
	nonce := 0
	for {
		cp.mu.Lock()
		changed := cp.changed
		var out []*discovery.DeltaDiscoveryResponse
		for typ, in := range subs {
			resp := &discovery.DeltaDiscoveryResponse{TypeUrl: typ}
			for name, r := range cp.resources[typ] {
				if (in.all || in.names[name]) && in.sent[name] != r.Version {
					in.sent[name] = r.Version
					resp.Resources = append(resp.Resources, r)
				}
			}
			if len(resp.Resources) > 0 {
				nonce++
				resp.Nonce = fmt.Sprintf("%d/%d", id, nonce)
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
		case <-ctx.Done():
			return errors.New("the stream is cut")
		case <-changed:
		case r, ok := <-reqs:
			if !ok {
				return nil
			}
			cp.mu.Lock()
			cp.requests = append(cp.requests, r)
			if r.Node != nil {
				cp.nodes = append(cp.nodes, r.Node)
			}
			if r.ResponseNonce != "" {
				cp.acks[r.TypeUrl] = r.ResponseNonce
				if r.ErrorDetail != nil {
					cp.acks[r.TypeUrl] = ""
					cp.t.Logf("refused: %s", r.ErrorDetail.Message)
				}
			}
			cp.mu.Unlock()
			in := subs[r.TypeUrl]
			if in == nil {
				in = &interest{names: map[string]bool{}, sent: map[string]string{}}
				subs[r.TypeUrl] = in
				in.all = len(r.ResourceNamesSubscribe) == 0
				for n, v := range r.InitialResourceVersions {
					in.sent[n] = v
				}
			}
			for _, n := range r.ResourceNamesSubscribe {
				in.all = in.all || n == "*"
				in.names[n] = true
			}
		}
	}
}

// folder makes a folder with the mounted roots and token of a pod.
func folder(t *testing.T, roots ...*x509.Certificate) (dir, rootFile, tokenFile string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // short: it holds unix sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	rootFile, tokenFile = filepath.Join(dir, "root-cert.pem"), filepath.Join(dir, "istio-token")
	write(t, rootFile, string(encodePEM(roots...)))
	write(t, tokenFile, "the.token.it-is\n")
	return dir, rootFile, tokenFile
}

func write(t *testing.T, path, s string) {
	t.Helper()
	if err := writeFile(path, []byte(s), 0o600); err != nil {
		t.Fatal(err)
	}
}

// eventually waits until f returns nil.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// logger writes to the test's log while it runs.
func logger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// start runs f until the test ends, and waits for it then.
func start(t *testing.T, f func(context.Context) error) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() { cancel(); err = <-done })
		return err
	}
	t.Cleanup(func() { stop() })
	return stop
}

func encodePEM(all ...*x509.Certificate) []byte { return certs.Encode(all...) }
