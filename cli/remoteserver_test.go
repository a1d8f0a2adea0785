package cli

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/carrick-mesh/carrick/ca"
	"github.com/carrick-mesh/carrick/certs"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd/api"
)

// A remote secret keeps what the kubeconfig needs to reach the server, and says what it kept.
func TestRemoteSecretReachesTheServer(t *testing.T) {
	answer := http.StatusOK
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer TOKEN" {
			t.Errorf("authorization %q", r.Header.Get("Authorization"))
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(answer)
		io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Unauthorized","code":401}`)
	}))
	front.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that are meant to fail
	front.StartTLS()
	defer front.Close()
	own := certs.Encode(front.Certificate())
	root, err := ca.NewRoot(ca.RootOptions{Key: ca.P256})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name      string
		clusterCA []byte
		config    rest.TLSClientConfig
		proxy     string
		status    int
		want      api.Cluster
		note      string // empty for none
		err       string
	}{
		{name: "the cluster's own CA", clusterCA: own, want: api.Cluster{CertificateAuthorityData: own}},
		{name: "a front proxy's CA", clusterCA: root.CertPEM, config: rest.TLSClientConfig{CAData: own}, want: api.Cluster{CertificateAuthorityData: own}, note: "taking the CA of the kubeconfig"},
		{name: "not verified", clusterCA: root.CertPEM, config: rest.TLSClientConfig{Insecure: true}, want: api.Cluster{InsecureSkipTLSVerify: true}, note: "WARNING: the certificate of"},
		{name: "not verified without need", clusterCA: own, config: rest.TLSClientConfig{Insecure: true}, want: api.Cluster{CertificateAuthorityData: own}},
		{name: "nobody's", clusterCA: root.CertPEM, err: "neither the cluster's CA nor this machine's roots"},
		{name: "another's authentication", clusterCA: own, status: http.StatusUnauthorized, want: api.Cluster{CertificateAuthorityData: own}, note: "does not accept the token"},
		{name: "a proxy", clusterCA: own, proxy: "http://10.0.0.1:3128", want: api.Cluster{CertificateAuthorityData: own, ProxyURL: "http://10.0.0.1:3128"}, note: "by proxy-url http://10.0.0.1:3128"},
		{name: "a proxy of this machine", clusterCA: own, proxy: "http://localhost:3128", want: api.Cluster{CertificateAuthorityData: own}, note: "is a proxy of this machine and is left out"},
	} {
		answer = max(tt.status, http.StatusOK)
		c := &cluster{server: front.URL, config: &rest.Config{Host: front.URL, TLSClientConfig: tt.config}, entry: &api.Cluster{ProxyURL: tt.proxy}}
		var stderr bytes.Buffer
		cmd := &cobra.Command{}
		cmd.SetErr(&stderr)
		cmd.SetContext(t.Context())
		token := &corev1.Secret{Data: map[string][]byte{"ca.crt": tt.clusterCA, "token": []byte("TOKEN")}}
		got, err := (&remoteSecretFlags{account: "reader"}).endpoint(cmd, c, front.URL, token)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if !bytes.Equal(got.CertificateAuthorityData, tt.want.CertificateAuthorityData) || got.InsecureSkipTLSVerify != tt.want.InsecureSkipTLSVerify || got.ProxyURL != tt.want.ProxyURL || got.Server != front.URL {
			t.Errorf("%s: %+v", tt.name, got)
		}
		if tt.note == "" && stderr.Len() > 0 || !strings.Contains(stderr.String(), tt.note) {
			t.Errorf("%s: said %q, want %q", tt.name, &stderr, tt.note)
		}
	}
}

func TestRemoteSecretNames(t *testing.T) {
	for name, bad := range map[string]bool{"cluster1": false, "0a1b": false, "Prod_East": true, "gke_project_zone_name": true, "a.b": true, "": true, strings.Repeat("a", 64): true} {
		if err := (&remoteSecretFlags{account: "a"}).checkNames(name, "istio-system"); (err != nil) != bad {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, f := range []remoteSecretFlags{{account: "A"}, {account: "a", secretName: "a/b"}} {
		if err := f.checkNames("c", "istio-system"); err == nil {
			t.Errorf("%+v passes", f)
		}
	}
	if err := (&remoteSecretFlags{account: "a"}).checkNames("c", "Istio"); err == nil {
		t.Error("a namespace in capitals passes")
	}
}
