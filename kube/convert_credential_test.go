package kube

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The CA's key must not become a gateway's by somebody naming its Secret in credentialName.
func TestCredential(t *testing.T) {
	tls := map[string][]byte{"tls.crt": []byte("c"), "tls.key": []byte("k"), "ca.crt": []byte("r")}
	for _, test := range []struct {
		name string
		kind corev1.SecretType
		data map[string][]byte
		want bool
	}{
		{"web", corev1.SecretTypeTLS, tls, true},
		{"web", corev1.SecretTypeOpaque, map[string][]byte{"cert": []byte("c"), "key": []byte("k")}, true},
		{"web-cacert", corev1.SecretTypeOpaque, map[string][]byte{"cacert": []byte("r")}, true},
		{"cacerts", corev1.SecretTypeTLS, tls, false},
		{"cacerts", corev1.SecretTypeOpaque, tls, false},
		{"istio-ca-secret", "istio.io/ca-root", tls, false},
		{"reader-token", corev1.SecretTypeServiceAccountToken, map[string][]byte{"ca.crt": []byte("r"), "token": []byte("t")}, false},
		{"other", corev1.SecretTypeOpaque, map[string][]byte{"password": []byte("p")}, false},
	} {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: test.name}, Type: test.kind, Data: test.data}
		if got := credential("cluster1", s) != nil; got != test.want {
			t.Errorf("Secret %s of type %s: a credential: %v, want %v", test.name, test.kind, got, test.want)
		}
	}
}
