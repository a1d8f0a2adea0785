package agent

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	sds "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/carrick-mesh/carrick/resource"
)

// The names under which a proxy asks for the workload's secrets, as in Istio.
const (
	certificateName = "default"
	rootsName       = "ROOTCA"
)

// secrets serves the workload's certificate and roots by Envoy's secret discovery service.
type secrets struct {
	sds.UnimplementedSecretDiscoveryServiceServer
	certs *Certificates
	files *files
	log   *slog.Logger

	mu      sync.Mutex
	applied map[int]string // by stream that has asked for the roots: those that Envoy has acknowledged, PEM
	streams int            // opened so far
	changed chan struct{}  // closed when applied changes
}

func newSecrets(certs *Certificates, log *slog.Logger) *secrets {
	return &secrets{certs: certs, files: newFiles(log), log: log, applied: map[int]string{}, changed: make(chan struct{})}
}

// update changes applied and tells those who wait.
func (s *secrets) update(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

// settle waits until Envoy has applied the roots of the moment wherever it uses them, or ctx ends.
func (s *secrets) settle(ctx context.Context) error {
	for {
		cr, _ := s.certs.Current()
		s.mu.Lock()
		changed, behind := s.changed, false
		for _, pem := range s.applied {
			behind = behind || cr != nil && pem != cr.trustedPEM()
		}
		s.mu.Unlock()
		if !behind {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// secret encodes one of the two secrets.
func secret(cr *Credentials, name string) (*anypb.Any, error) {
	inline := func(b []byte) *core.DataSource {
		return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
	}
	s := &tls.Secret{Name: name}
	switch name {
	case certificateName:
		key, err := cr.keyPEM()
		if err != nil {
			return nil, err
		}
		s.Type = &tls.Secret_TlsCertificate{TlsCertificate: &tls.TlsCertificate{
			CertificateChain: inline(cr.Chain), PrivateKey: inline(key)}}
	case rootsName:
		v := &tls.CertificateValidationContext{TrustedCa: inline(cr.RootsPEM)}
		if len(cr.CRL) > 0 {
			v.Crl = inline(cr.CRL)
		}
		s.Type = &tls.Secret_ValidationContext{ValidationContext: v}
	default:
		return nil, fmt.Errorf("secret %q: the agent serves %s and %s", name, certificateName, rootsName)
	}
	return anypb.New(s)
}

// StreamSecrets serves the state-of-the-world form, the one that Istio's configuration asks for.
// Envoy opens one stream for each secret.
func (s *secrets) StreamSecrets(stream sds.SecretDiscoveryService_StreamSecretsServer) error {
	reqs := receive(stream.Context(), stream.Recv)
	var names []string
	sent := map[string]string{} // versions
	nonce := 0
	var id int
	s.update(func() { s.streams++; id = s.streams })
	defer s.update(func() { delete(s.applied, id) })
	var roots string // of the last response
	for {
		cr, changed := s.certs.Current()
		if cr != nil && slices.ContainsFunc(names, func(n string) bool { return sent[n] != cr.version() }) {
			resp := &discovery.DiscoveryResponse{TypeUrl: resource.SecretType, VersionInfo: cr.version()}
			for _, n := range names {
				a, err := secret(cr, n)
				if err != nil {
					return status.Error(codes.InvalidArgument, err.Error())
				}
				resp.Resources = append(resp.Resources, a)
				sent[n] = cr.version()
			}
			nonce++
			resp.Nonce = fmt.Sprint(nonce)
			roots = cr.trustedPEM()
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-changed:
		case r, ok := <-reqs:
			if !ok {
				return nil
			}
			if r.ErrorDetail != nil {
				s.log.Warn("the proxy refused a secret", "secret", r.ResourceNames, "error", r.ErrorDetail.Message)
			}
			if r.ResponseNonce != "" && r.ResponseNonce != fmt.Sprint(nonce) {
				continue // of an earlier response
			}
			names = r.ResourceNames
			if len(names) > 0 && isFile(names[0]) {
				return s.streamFile(stream, reqs, names[0])
			}
			if slices.Contains(names, rootsName) && r.ErrorDetail == nil {
				s.update(func() { s.applied[id] = roots })
			}
		}
	}
}

// streamFile serves a secret that is files of the pod. Until they can be read nothing is sent, so what needs
// them is not in force.
func (s *secrets) streamFile(stream sds.SecretDiscoveryService_StreamSecretsServer, reqs <-chan *discovery.DiscoveryRequest, name string) error {
	s.files.Watch(name)
	sent := ""
	for nonce := 1; ; {
		f, changed := s.files.Current(name)
		if f != nil && f.version != sent {
			a, err := anypb.New(f.secret(name))
			if err != nil {
				return status.Error(codes.Internal, err.Error())
			}
			resp := &discovery.DiscoveryResponse{TypeUrl: resource.SecretType, VersionInfo: f.version, Nonce: fmt.Sprint(nonce), Resources: []*anypb.Any{a}}
			if err := stream.Send(resp); err != nil {
				return err
			}
			sent = f.version
			nonce++
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-changed:
		case r, ok := <-reqs:
			if !ok {
				return nil
			}
			if r.ErrorDetail != nil {
				s.log.Warn("the proxy refused a secret", "secret", name, "error", r.ErrorDetail.Message)
			}
		}
	}
}

// receive reads the messages of a stream into a channel, which is closed at the stream's end. The
// reading goroutine ends with the stream's context.
func receive[T proto.Message](ctx context.Context, recv func() (T, error)) <-chan T {
	ch := make(chan T)
	go func() {
		defer close(ch)
		for {
			m, err := recv()
			if err != nil {
				return
			}
			select {
			case ch <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ch
}
