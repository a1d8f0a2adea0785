package cli

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/certs"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// address finds where other clusters reach the API server: never at a loopback address, which
// means this machine to whoever reads it.
func (f *remoteSecretFlags) address(cmd *cobra.Command, c *cluster) (string, error) {
	if f.server != "" {
		u, err := url.Parse(f.server)
		if err != nil || u.Host == "" || u.Scheme != "https" {
			return "", usagef("--server %s: want https://HOST:PORT", f.server)
		}
		if loopback(f.server) {
			return "", usagef("--server %s: is a loopback address, which means the pod of the control plane that reads it", f.server)
		}
		return f.server, nil
	}
	if !loopback(c.server) {
		if u, err := url.Parse(c.server); err != nil || u.Scheme != "https" {
			return "", c.wrong(fmt.Errorf("the kubeconfig's server %s is not https, so the token would be readable on its way; give --server https://HOST:PORT", c.server))
		}
		return c.server, nil
	}
	slices, err := c.Kube.DiscoveryV1().EndpointSlices("default").List(cmd.Context(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=kubernetes"})
	if err != nil {
		return "", c.wrong(fmt.Errorf("the kubeconfig's server is a loopback address, and EndpointSlice kubernetes cannot be read: %w; give --server", err))
	}
	for _, s := range slices.Items {
		for _, e := range s.Endpoints {
			for _, addr := range e.Addresses {
				for _, p := range s.Ports {
					if p.Port == nil || loopback("https://"+net.JoinHostPort(addr, "1")) {
						continue
					}
					server := "https://" + net.JoinHostPort(addr, fmt.Sprint(*p.Port))
					fmt.Fprintf(cmd.ErrOrStderr(), "Note: %s means this machine only; taking %s from EndpointSlice default/%s. Another address: --server\n", c.server, server, s.Name)
					return server, nil
				}
			}
		}
	}
	return "", c.wrong(errors.New("the kubeconfig's server is a loopback address, and EndpointSlice default/kubernetes has no other; give --server https://HOST:PORT as the other clusters reach it"))
}

// loopback reports whether a server's name means whoever reads it: this machine, or the cluster in
// which a pod asks.
func loopback(server string) bool {
	u, err := url.Parse(server)
	if err != nil {
		return false
	}
	h := u.Hostname()
	if h == "localhost" || strings.HasSuffix(h, ".localhost") || h == "kubernetes" || strings.HasPrefix(h, "kubernetes.default") {
		return true
	}
	ip := net.ParseIP(h)
	return ip != nil && (ip.IsLoopback() || ip.IsUnspecified())
}

// endpoint says how other clusters reach the server: with the cluster's own CA as istioctl has it, and
// with what the kubeconfig needs beside where that is not enough. Whether it is is tried, with the
// account's token, where the server is the one that the kubeconfig reaches.
func (f *remoteSecretFlags) endpoint(cmd *cobra.Command, c *cluster, server string, token *corev1.Secret) (*clientcmdapi.Cluster, error) {
	out := &clientcmdapi.Cluster{Server: server, TLSServerName: f.tlsServerName, CertificateAuthorityData: token.Data["ca.crt"]}
	note := func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) }
	switch p := c.entry.ProxyURL; {
	case p == "" || server != c.server:
	case loopback(p):
		note("Note: proxy-url %s of the kubeconfig is a proxy of this machine and is left out; the other clusters' control planes reach %s directly", p, server)
	default:
		out.ProxyURL = p
		note("Note: the kubeconfig reaches %s by proxy-url %s; the other clusters' control planes will use it as well", server, p)
	}
	if server != c.server {
		return out, nil
	}
	if out.TLSServerName == "" {
		out.TLSServerName = c.entry.TLSServerName
	}
	err := f.try(cmd, c, out, token)
	var unverified *tls.CertificateVerificationError
	if errors.As(err, &unverified) {
		if err = f.trustAsKubeconfig(c, out, unverified, note); err != nil {
			return nil, c.wrong(err)
		}
		err = f.try(cmd, c, out, token)
	}
	if apierrors.IsUnauthorized(err) {
		note("Warning: %s does not accept the token of ServiceAccount %s: something in front of the API server authenticates by itself; give --server with an address that leads to the API server", server, f.account)
	}
	return out, nil
}

// try asks the server for its version as the other clusters will.
func (f *remoteSecretFlags) try(cmd *cobra.Command, c *cluster, e *clientcmdapi.Cluster, token *corev1.Secret) error {
	cfg := &rest.Config{Host: e.Server, BearerToken: string(token.Data["token"]), Timeout: 5 * time.Second, Proxy: c.config.Proxy,
		TLSClientConfig: rest.TLSClientConfig{CAData: e.CertificateAuthorityData, Insecure: e.InsecureSkipTLSVerify, ServerName: e.TLSServerName}}
	k, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	return k.Discovery().RESTClient().Get().AbsPath("/version").Do(cmd.Context()).Error()
}

// trustAsKubeconfig takes over what the kubeconfig trusts, for the cluster's own CA does not verify the
// server: a proxy stands in front of it.
func (f *remoteSecretFlags) trustAsKubeconfig(c *cluster, e *clientcmdapi.Cluster, why *tls.CertificateVerificationError, note func(string, ...any)) error {
	switch {
	case c.config.Insecure:
		e.CertificateAuthorityData, e.InsecureSkipTLSVerify = nil, true
		note("WARNING: the certificate of %s is not verified: the cluster's CA has not issued it, and the kubeconfig says insecure-skip-tls-verify. "+
			"Whoever stands between the clusters can read the token and answer for the API server. Give the kubeconfig the CA of that server and make the secret again", e.Server)
	case len(c.config.CAData) > 0 || c.config.CAFile != "":
		if err := rest.LoadTLSFiles(c.config); err != nil {
			return fmt.Errorf("the kubeconfig's certificate-authority: %w", err)
		}
		e.CertificateAuthorityData = c.config.CAData
		note("Note: the cluster's own CA has not issued the certificate of %s; taking the CA of the kubeconfig, which a proxy in front of it has", e.Server)
	default: // this machine's roots, which the control plane's pod need not have
		chains, err := why.UnverifiedCertificates[0].Verify(x509.VerifyOptions{Intermediates: intermediates(why.UnverifiedCertificates)})
		if err != nil {
			return fmt.Errorf("neither the cluster's CA nor this machine's roots verify the server's certificate: %w", err)
		}
		root := chains[0][len(chains[0])-1]
		e.CertificateAuthorityData = certs.Encode(root)
		note("Note: the certificate of %s is of a public CA; taking its root %s", e.Server, root.Subject)
	}
	return nil
}

func intermediates(chain []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range chain[1:] {
		p.AddCert(c)
	}
	return p
}
