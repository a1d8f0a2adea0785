package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/status"
	pb "istio.io/api/security/v1alpha1"
)

// certificateService returns a Signer that calls istio.v1.auth.IstioCertificateService, over a
// connection of its own each time, so that it trusts the roots as they are mounted then.
func certificateService(e endpoint) Signer {
	return func(ctx context.Context, csr []byte, ttl time.Duration) ([]string, error) {
		if e.plaintext {
			return nil, fmt.Errorf("the certificate authority %s: certificates are signed over TLS only", e.address)
		}
		conn, err := e.dial()
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		ctx, err = e.authorize(ctx)
		if err != nil {
			return nil, err
		}
		resp, err := pb.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx,
			&pb.IstioCertificateRequest{Csr: string(csr), ValidityDuration: int64(ttl / time.Second)})
		if err != nil {
			return nil, fmt.Errorf("asking %s for a certificate: %w", e.address, plain(err))
		}
		if len(resp.CertChain) == 0 {
			return nil, fmt.Errorf("asking %s for a certificate: an empty answer", e.address)
		}
		return resp.CertChain, nil
	}
}

// plain turns a gRPC status into an error that reads as a sentence.
func plain(err error) error {
	if s, ok := status.FromError(err); ok {
		return errors.New(s.Message() + " (" + s.Code().String() + ")")
	}
	return err
}
