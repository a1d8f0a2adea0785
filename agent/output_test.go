package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The certificate, its key and the roots are written where OUTPUT_CERTS says, and again when they change.
func TestOutputCerts(t *testing.T) {
	root := newRoot(t, "Root")
	cp := newControlPlane(t, root)
	_, rootFile, tokenFile := folder(t, root.cert)
	e := endpoint{address: cp.address, rootFile: rootFile, tokenFile: tokenFile, clusterID: "cluster1"}
	c := NewCertificates(CertificateOptions{Identity: sleep, Sign: certificateService(e), RootFile: rootFile, Spread: time.Nanosecond, Logger: logger(t)})
	dir := t.TempDir()
	start(t, c.Run)
	start(t, func(ctx context.Context) error { return output(ctx, dir, c, logger(t)) })
	read := func(name string) []byte {
		b, _ := os.ReadFile(filepath.Join(dir, name))
		return b
	}
	same := func() error {
		cr, _ := c.Current()
		if cr == nil || !bytes.Equal(read("cert-chain.pem"), cr.Chain) || !bytes.Equal(read("root-cert.pem"), cr.RootsPEM) {
			return errors.New("others are written")
		}
		_, err := tls.X509KeyPair(read("cert-chain.pem"), read("key.pem"))
		return err
	}
	eventually(t, "the first certificate", same)
	was := serialOf(c)
	c.Renew()
	another(t, c, was)
	eventually(t, "the next one", same)
	if info, err := os.Stat(filepath.Join(dir, "key.pem")); err != nil || info.Mode().Perm()&0o007 != 0 {
		t.Errorf("the key is open to all: %v %v", info.Mode(), err)
	}
}
