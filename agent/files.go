package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/carrick-mesh/carrick/proxy"
)

// Names of secrets that are files of the pod (formats of Istio): "file-cert:CHAIN~KEY" and "file-root:PATH".
const (
	fileCertificate = "file-cert:"
	fileRoots       = "file-root:"
	systemRoots     = "system" // instead of a path: the machine's trust store
)

// trustStores are where distributions keep the roots of the web.
var trustStores = []string{
	"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/pki/tls/cacert.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem",
}

const (
	filePoll    = 5 * time.Second // how soon a file that was renewed is taken up
	maxFileSize = 4 << 20
	maxFiles    = 1024 // that are watched at once
)

// files are certificates and roots in files of the pod. They are read when they are first asked for and again
// when they change; of a file that cannot be read any more the last good content stays.
type files struct {
	log *slog.Logger

	mu      sync.Mutex
	known   map[string]*fileSecret
	wrong   map[string]string // why a name cannot be read, as it was logged
	changed chan struct{}     // closed when known changes
}

// fileSecret is what a name means now. Immutable.
type fileSecret struct {
	version    string
	chain, key []byte // PEM, of a certificate
	pair       *tls.Certificate
	rootsPEM   []byte // of roots
	roots      *proxy.Roots
}

func newFiles(log *slog.Logger) *files {
	return &files{log: log, known: map[string]*fileSecret{}, wrong: map[string]string{}, changed: make(chan struct{})}
}

func isFile(name string) bool {
	return strings.HasPrefix(name, fileCertificate) || strings.HasPrefix(name, fileRoots)
}

// Current returns what a name means, nil if it has not been read (yet), and a channel that is closed when
// some name means something else.
func (f *files) Current(name string) (*fileSecret, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.known[name], f.changed
}

// Watch reads a name that is not known, and looks for changes from now on.
func (f *files) Watch(name string) {
	f.mu.Lock()
	_, known := f.known[name]
	if !known && len(f.known) < maxFiles {
		f.known[name] = nil
	}
	f.mu.Unlock()
	if !known {
		f.refresh(name)
	}
}

// Run looks for changes until ctx ends.
func (f *files) Run(ctx context.Context) error {
	tick := time.NewTicker(filePoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		f.refreshAll()
	}
}

func (f *files) refreshAll() {
	f.mu.Lock()
	var names []string
	for name := range f.known {
		names = append(names, name)
	}
	f.mu.Unlock()
	for _, name := range names {
		f.refresh(name)
	}
}

func (f *files) refresh(name string) {
	last, _ := f.Current(name)
	now, err := readSecret(name, last)
	f.mu.Lock()
	defer f.mu.Unlock()
	was, watched := f.known[name]
	switch {
	case !watched:
	case err != nil:
		if f.wrong[name] != err.Error() {
			f.wrong[name] = err.Error()
			f.log.Warn("cannot use files that the configuration names", "secret", name, "error", err, "last good stays", was != nil)
		}
	case was == nil || was.version != now.version:
		delete(f.wrong, name)
		f.known[name] = now
		close(f.changed)
		f.changed = make(chan struct{})
	default:
		delete(f.wrong, name)
	}
}

// readSecret reads the files of a name. It returns last if they are as they were.
func readSecret(name string, last *fileSecret) (*fileSecret, error) {
	if pair, ok := strings.CutPrefix(name, fileCertificate); ok {
		chainPath, keyPath, ok := strings.Cut(pair, "~")
		if !ok {
			return nil, fmt.Errorf("%q is not CHAIN~KEY", pair)
		}
		chain, err := readBounded(chainPath)
		if err != nil {
			return nil, err
		}
		key, err := readBounded(keyPath)
		if err != nil {
			return nil, err
		}
		version := sum(chain, key)
		if last != nil && last.version == version {
			return last, nil
		}
		c, err := tls.X509KeyPair(chain, key)
		if err != nil {
			return nil, fmt.Errorf("the certificate in %s with the key in %s: %w", chainPath, keyPath, err)
		}
		return &fileSecret{version: version, chain: chain, key: key, pair: &c}, nil
	}
	path := strings.TrimPrefix(name, fileRoots)
	if path == systemRoots {
		i := slices.IndexFunc(trustStores, func(p string) bool { _, err := os.Stat(p); return err == nil })
		if i < 0 {
			return nil, fmt.Errorf("the machine has no trust store in any of %s", strings.Join(trustStores, ", "))
		}
		path = trustStores[i]
	}
	b, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	version := sum(b)
	if last != nil && last.version == version {
		return last, nil
	}
	r, err := proxy.NewRoots(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &fileSecret{version: version, rootsPEM: b, roots: r}, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFileSize {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFileSize)
	}
	return b, nil
}

func sum(parts ...[]byte) string {
	h := sha256.Sum256(bytes.Join(parts, []byte{0}))
	return hex.EncodeToString(h[:8])
}

// secret encodes a secret for Envoy.
func (s *fileSecret) secret(name string) *tlspb.Secret {
	inline := func(b []byte) *core.DataSource {
		return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
	}
	if s.roots != nil {
		return &tlspb.Secret{Name: name, Type: &tlspb.Secret_ValidationContext{ValidationContext: &tlspb.CertificateValidationContext{TrustedCa: inline(s.rootsPEM)}}}
	}
	return &tlspb.Secret{Name: name, Type: &tlspb.Secret_TlsCertificate{TlsCertificate: &tlspb.TlsCertificate{
		CertificateChain: inline(s.chain), PrivateKey: inline(s.key),
	}}}
}
