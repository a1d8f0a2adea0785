package ca

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	pb "istio.io/api/security/v1alpha1"

	"github.com/carrick-mesh/carrick/certs"
	"github.com/carrick-mesh/carrick/identity"
)

// Caller is who a token belongs to, as the API server that issued it says.
type Caller struct {
	Identity identity.Identity
	Cluster  string
	Pod      string // empty if the token is bound to none
}

// Authenticator tells whose a bearer token is (TokenReview, audience istio-ca). cluster is
// the cluster the client says it is in, empty if it says nothing.
type Authenticator interface {
	Authenticate(ctx context.Context, token, cluster string) (Caller, error)
}

// maxCSR bounds a request; one with an RSA 8192 key has 3 kB.
const maxCSR = 32 << 10

// Register adds istio.v1.auth.IstioCertificateService to a gRPC server. Requests carry
// metadata authorization (Bearer TOKEN) and clusterid. The response's cert_chain has the
// leaf first, then each intermediate, and last one element with all published roots.
func (a *Authority) Register(s grpc.ServiceRegistrar, auth Authenticator) {
	pb.RegisterIstioCertificateServiceServer(s, &service{authority: a, auth: auth})
}

type service struct {
	pb.UnimplementedIstioCertificateServiceServer
	authority *Authority
	auth      Authenticator
}

// CreateCertificate signs the public key of a CSR for the identity of the caller's token,
// whatever else the CSR says; a CSR that names another workload is refused.
func (s *service) CreateCertificate(ctx context.Context, req *pb.IstioCertificateRequest) (*pb.IstioCertificateResponse, error) {
	m := s.authority.metrics
	m.requests.Inc()
	token, cluster := bearer(ctx)
	if token == "" {
		m.authFailures.Inc()
		return nil, status.Error(codes.Unauthenticated, "no bearer token in metadata authorization")
	}
	caller, err := s.auth.Authenticate(ctx, token, cluster)
	if err != nil {
		m.authFailures.Inc()
		s.authority.cfg.Log.Warn("certificate request refused", "cluster", cluster, "error", err)
		return nil, status.Error(codes.Unauthenticated, "the token is not accepted: "+err.Error())
	}
	resp, err := s.authority.issue(caller, req)
	if err != nil {
		level := s.authority.cfg.Log.Warn
		if status.Code(err) == codes.Unavailable {
			level = s.authority.cfg.Log.Debug
		}
		level("certificate request not granted", "identity", caller.Identity.String(), "pod", caller.Pod, "cluster", caller.Cluster, "error", err)
		return nil, err
	}
	m.issued.Inc()
	s.authority.cfg.Log.Debug("certificate issued", "identity", caller.Identity.String(), "pod", caller.Pod, "cluster", caller.Cluster)
	return resp, nil
}

// bearer returns the bearer token and the cluster of a request's metadata.
func bearer(ctx context.Context) (token, cluster string) {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get("authorization") {
		if scheme, t, ok := strings.Cut(v, " "); ok && strings.EqualFold(scheme, "bearer") {
			token = strings.TrimSpace(t)
			break
		}
	}
	if v := md.Get("clusterid"); len(v) > 0 {
		cluster = v[0]
	}
	return token, cluster
}

func (a *Authority) issue(caller Caller, req *pb.IstioCertificateRequest) (*pb.IstioCertificateResponse, error) {
	for _, k := range []string{"ImpersonatedIdentity", "CertSigner"} {
		if req.GetMetadata().GetFields()[k].GetStringValue() != "" {
			return nil, status.Errorf(codes.PermissionDenied, "metadata %s is not allowed", k)
		}
	}
	csr, err := parseCSR(req.GetCsr())
	if err != nil {
		a.metrics.badRequests.Inc()
		return nil, status.Error(codes.InvalidArgument, "csr "+err.Error())
	}
	for _, u := range csr.URIs {
		id, err := identity.Parse(u.String())
		// The trust domain may have changed since the pod started: ours counts.
		if err != nil || id.Namespace != caller.Identity.Namespace || id.ServiceAccount != caller.Identity.ServiceAccount {
			return nil, status.Errorf(codes.PermissionDenied, "the csr asks for %s, the token is of %s", u, caller.Identity)
		}
	}
	ttl := time.Duration(req.GetValidityDuration()) * time.Second
	if req.GetValidityDuration() <= 0 {
		ttl = a.cfg.DefaultTTL
	} else if req.GetValidityDuration() > int64(a.cfg.MaxTTL/time.Second) {
		ttl = a.cfg.MaxTTL
	}
	uri, err := url.Parse(caller.Identity.String())
	if err != nil {
		return nil, status.Errorf(codes.Internal, "identity %s is no URI", caller.Identity)
	}
	st := a.state.Load()
	if st.signer == nil {
		if st.next != nil {
			return nil, status.Error(codes.Unavailable, "the CA's root is being replaced and not known everywhere yet; try again")
		}
		return nil, status.Error(codes.Unavailable, "the control plane has no usable CA")
	}
	der, err := st.signer.sign(csr.PublicKey, []*url.URL{uri}, nil, ttl, time.Now())
	if err != nil {
		a.metrics.signFailures.Inc()
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	resp := &pb.IstioCertificateResponse{CertChain: []string{certs.EncodeDER(der)}}
	for _, c := range st.signer.intermediates() {
		resp.CertChain = append(resp.CertChain, certs.EncodeDER(c.Raw))
	}
	resp.CertChain = append(resp.CertChain, st.bundle.PEM)
	return resp, nil
}

func parseCSR(data string) (*x509.CertificateRequest, error) {
	if len(data) > maxCSR {
		return nil, fmt.Errorf("has %d bytes, more than %d", len(data), maxCSR)
	}
	block, _ := pem.Decode([]byte(data))
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("is no PEM block of type CERTIFICATE REQUEST")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("cannot be parsed: %w", err)
	}
	// Not only the signature's truth: checked so that nobody gets a certificate for a key
	// that he does not have.
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("is not signed by its own key: %w", err)
	}
	if err := certs.CheckPublic(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("has a weak key: %w", err)
	}
	return csr, nil
}
