package ca

import (
	"strings"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/certs"
)

// Each refusal names the key of the Secret and what is wrong with it.
func TestParsePluggedInRefuses(t *testing.T) {
	root, files := plugged(t, "cluster1")
	otherRoot, other := plugged(t, "cluster1")
	sibling := under(t, root, IntermediateOptions{Cluster: "cluster1"})
	leafOnly := func() []byte {
		s, err := ParsePluggedIn(files, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		der, err := s.sign(s.key.Public(), nil, []string{"a"}, time.Hour, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return []byte(certs.EncodeDER(der))
	}()
	without := func(k string) map[string][]byte {
		m := merge(files, k, nil)
		delete(m, k)
		return m
	}
	now := time.Now()
	tests := []struct {
		name string
		data map[string][]byte
		at   time.Time
		want string
	}{
		{"no key", without("ca-key.pem"), now, "ca-key.pem missing"},
		{"no chain", without("cert-chain.pem"), now, "cert-chain.pem missing"},
		{"empty", nil, now, "ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem missing"},
		{"empty certificate", merge(files, "ca-cert.pem", nil), now, "ca-cert.pem is empty"},
		{"key of another", merge(files, "ca-key.pem", other["ca-key.pem"]), now, "ca-key.pem is not the key of ca-cert.pem"},
		{"root of another", merge(files, "root-cert.pem", otherRoot.CertPEM), now, "does not lead through cert-chain.pem to a root in root-cert.pem"},
		{"chain of a former run", merge(files, "cert-chain.pem", sibling["cert-chain.pem"]), now, "cert-chain.pem starts with another certificate"},
		{"certificate where key is", merge(files, "ca-key.pem", files["ca-cert.pem"]), now, `ca-key.pem block 1 (line 1): it is of type "CERTIFICATE"`},
		{"key where certificate is", merge(files, "ca-cert.pem", files["ca-key.pem"]), now, "where a CERTIFICATE is expected"},
		{"cut off", merge(files, "root-cert.pem", append(append([]byte(nil), root.CertPEM...), root.CertPEM[:200]...)), now, "root-cert.pem block 2 (line "},
		{"a leaf as root", merge(files, "root-cert.pem", append(leafOnly, root.CertPEM...)), now, "which is not a CA certificate"},
		{"a leaf as CA", merge(files, "ca-cert.pem", leafOnly), now, "is not a CA certificate"},
		{"expired", files, now.AddDate(3, 0, 0), "ca-cert.pem (CN=Intermediate CA,O=Istio,L=cluster1) expired at"},
		{"not yet valid", files, now.Add(-time.Hour), "is not valid before"},
		{"encrypted key", merge(files, "ca-key.pem", []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")), now, "ca-key.pem is encrypted"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParsePluggedIn(tt.data, tt.at)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
	if _, err := ParsePluggedIn(merge(files, "cert-chain.pem", nil), now); err != nil {
		t.Errorf("an empty chain between intermediate and root: %v", err)
	}
}

// Path lengths are only seen by verifying a leaf.
func TestPathLength(t *testing.T) {
	root, _ := plugged(t, "x")
	mid := under(t, root, IntermediateOptions{Cluster: "m"}) // path length 0
	if _, err := NewIntermediate(Root{KeyPEM: mid["ca-key.pem"], CertPEM: mid["ca-cert.pem"]}, IntermediateOptions{Cluster: "c", Key: P256}); err == nil {
		t.Error("an intermediate under an intermediate of path length 0")
	}
}

func FuzzParsePEM(f *testing.F) {
	root, err := NewRoot(RootOptions{Key: P256})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(root.CertPEM, root.KeyPEM)
	f.Add([]byte("-----BEGIN CERTIFICATE-----"), []byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"))
	f.Fuzz(func(t *testing.T, cert, key []byte) {
		_, err := ParsePluggedIn(map[string][]byte{"ca-cert.pem": cert, "ca-key.pem": key, "cert-chain.pem": cert, "root-cert.pem": cert}, time.Now())
		if err != nil && len(key) > 60 && strings.Contains(err.Error(), string(key)) {
			t.Error("the error shows the key")
		}
	})
}
