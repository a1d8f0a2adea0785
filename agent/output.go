package agent

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
)

// writeCertificates writes the certificate, its key and the roots into a folder, under Istio's names: the
// roots first, for what the certificate leads to must be trusted before peers see it.
func writeCertificates(dir string, cr *Credentials) error {
	key, err := cr.keyPEM()
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		body []byte
		mode os.FileMode
	}{{"root-cert.pem", cr.RootsPEM, 0o644}, {"key.pem", key, sharedKey}, {"cert-chain.pem", cr.Chain, 0o644}} {
		if err := writeFile(filepath.Join(dir, f.name), f.body, f.mode); err != nil {
			return err
		}
	}
	return nil
}

// output keeps the folder that OUTPUT_CERTS names up to date until ctx ends, for another program of the
// pod that speaks mutual TLS itself, as Prometheus does. What cannot be written is told, and tried again
// with the next certificate: the proxy does not depend on it.
func output(ctx context.Context, dir string, certs *Certificates, log *slog.Logger) error {
	for {
		cr, changed := certs.Current()
		if cr != nil {
			if err := writeCertificates(dir, cr); err != nil {
				log.Error("the workload's certificate cannot be written where OUTPUT_CERTS says", "error", err)
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}
