package kube

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/carrick-mesh/carrick/certs"
)

// maxKubeconfig bounds what is parsed of a Secret's key.
const maxKubeconfig = 256 << 10

// again is how a remote secret that cannot be used is mended.
const again = "make the secret again with carrick create-remote-secret"

// RemoteConfig reads a kubeconfig that somebody else wrote. It takes only what is in it: nothing
// that runs a program or reads a file of this machine. Blanks around a token are not part of it.
func RemoteConfig(kubeconfig []byte) (*rest.Config, error) {
	if len(kubeconfig) > maxKubeconfig {
		return nil, fmt.Errorf("the kubeconfig has %d bytes, more than %d", len(kubeconfig), maxKubeconfig)
	}
	c, err := clientcmd.Load(kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	if err := harmless(c); err != nil {
		return nil, err
	}
	if err := whole(c); err != nil {
		return nil, fmt.Errorf("the kubeconfig %w", err)
	}
	// Validates too, in Kubernetes' words.
	r, err := clientcmd.NewDefaultClientConfig(*c, &clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	return r, nil
}

// harmless refuses what would run a program or read a file here.
func harmless(c *api.Config) error {
	if len(c.Clusters) == 0 || len(c.Contexts) == 0 {
		return errors.New("the kubeconfig has no cluster or no context; " + again)
	}
	for name, a := range c.AuthInfos {
		var bad []string
		for field, set := range map[string]bool{
			"exec": a.Exec != nil, "auth-provider": a.AuthProvider != nil, "tokenFile": a.TokenFile != "",
			"client-certificate": a.ClientCertificate != "", "client-key": a.ClientKey != "",
		} {
			if set {
				bad = append(bad, field)
			}
		}
		if len(bad) > 0 {
			slices.Sort(bad)
			return fmt.Errorf("user %q of the kubeconfig uses %s, which a remote secret may not; use a token or the -data fields", name, strings.Join(bad, ", "))
		}
	}
	for name, cl := range c.Clusters {
		if cl.CertificateAuthority != "" {
			return fmt.Errorf("cluster %q of the kubeconfig uses certificate-authority, a file, which a remote secret may not; use certificate-authority-data", name)
		}
	}
	return nil
}

// whole refuses what no request could be made with, and takes the blanks off tokens.
func whole(c *api.Config) error {
	names := strings.Join(slices.Sorted(maps.Keys(c.Contexts)), ", ")
	current := c.Contexts[c.CurrentContext]
	switch {
	case c.CurrentContext == "":
		return fmt.Errorf("has no current-context; set it to one of its contexts: %s", names)
	case current == nil:
		return fmt.Errorf("has current-context %q, which is not one of its contexts: %s", c.CurrentContext, names)
	case c.Clusters[current.Cluster] == nil:
		return fmt.Errorf("has no cluster %q, which context %q names", current.Cluster, c.CurrentContext)
	case c.AuthInfos[current.AuthInfo] == nil:
		return fmt.Errorf("has no user %q, which context %q names", current.AuthInfo, c.CurrentContext)
	}
	cluster, user := c.Clusters[current.Cluster], c.AuthInfos[current.AuthInfo]
	if len(cluster.CertificateAuthorityData) > 0 {
		if _, err := certs.Certificates(cluster.CertificateAuthorityData); err != nil {
			return fmt.Errorf("has a bad certificate-authority-data of cluster %q: it %w", current.Cluster, err)
		}
	}
	if len(user.ClientCertificateData)+len(user.ClientKeyData) > 0 {
		if _, err := certs.Certificates(user.ClientCertificateData); err != nil {
			return fmt.Errorf("has a bad client-certificate-data of user %q: it %w", current.AuthInfo, err)
		}
		if _, err := tls.X509KeyPair(user.ClientCertificateData, user.ClientKeyData); err != nil {
			return fmt.Errorf("has client-key-data of user %q that is not the key of its client-certificate-data", current.AuthInfo)
		}
	}
	user.Token = strings.TrimSpace(user.Token)
	if strings.ContainsFunc(user.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("has a token of user %q with blanks or other characters that no token has; was it decoded twice, or broken into lines?", current.AuthInfo)
	}
	return nil
}

// cause says in the reader's terms why an API server cannot be used: what it answered, or why there is
// no answer.
func cause(err error, server string) string {
	var unverified *tls.CertificateVerificationError
	u, _ := url.Parse(server)
	switch {
	case apierrors.IsUnauthorized(err):
		return "the API server refuses the account of the remote secret (401 Unauthorized): its token has ended, or the account went with the control plane of that cluster; " +
			again + ", or delete it if the cluster has left the mesh"
	case apierrors.IsForbidden(err):
		return "the API server forbids the account of the remote secret to look (403 Forbidden): " + err.Error() + "; carrick install or upgrade in that cluster allows it"
	case errors.As(err, &unverified):
		return "the API server's certificate is not trusted with the remote secret's certificate-authority-data (a proxy in front of it has a CA of its own): " + unverified.Err.Error() + "; " + again
	case u != nil && loopback(u.Hostname()):
		return err.Error() + "; the kubeconfig's server " + server + " is a loopback address, which means the control plane's own pod; " + again + " --server https://HOST:PORT, as this cluster reaches it"
	}
	return err.Error()
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || ip != nil && (ip.IsLoopback() || ip.IsUnspecified())
}
