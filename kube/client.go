package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// Bounds of what a call to an API server may take.
const (
	dialTimeout = 4 * time.Second
	callTimeout = 8 * time.Second
)

// Client talks to one API server.
type Client struct {
	kube     kubernetes.Interface
	dynamic  dynamic.Interface
	metadata metadata.Interface
	host     string
}

// Connect returns a client. It does not call the API server yet.
func Connect(config *rest.Config) (*Client, error) {
	c := rest.CopyConfig(config)
	c.QPS, c.Burst = 200, 400 // the API server has priorities of its own
	c.UserAgent = "carrick"
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext
	}
	proto := rest.CopyConfig(c)
	proto.ContentType = runtime.ContentTypeProtobuf
	proto.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	hc, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", c.Host, err)
	}
	k := &Client{host: c.Host}
	if k.kube, err = kubernetes.NewForConfigAndClient(proto, hc); err != nil {
		return nil, fmt.Errorf("API server %s: %w", c.Host, err)
	}
	if k.dynamic, err = dynamic.NewForConfigAndClient(c, hc); err != nil {
		return nil, fmt.Errorf("API server %s: %w", c.Host, err)
	}
	if k.metadata, err = metadata.NewForConfigAndClient(metadata.ConfigFor(c), hc); err != nil {
		return nil, fmt.Errorf("API server %s: %w", c.Host, err)
	}
	return k, nil
}

// Host returns the API server's address, for people.
func (c *Client) Host() string { return c.host }

// Kubernetes returns the typed client, for wiring that has no business in this package.
func (c *Client) Kubernetes() kubernetes.Interface { return c.kube }

// ping asks the API server for its version.
func (c *Client) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout/2)
	defer cancel()
	return c.kube.Discovery().RESTClient().Get().AbsPath("/version").Do(ctx).Error()
}

// maxKubeconfig bounds what is parsed of a Secret's key.
const maxKubeconfig = 256 << 10

// RemoteConfig reads a kubeconfig that somebody else wrote. It takes only what is in it: nothing
// that runs a program or reads a file of this machine.
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
	// Validates too, in Kubernetes' words.
	r, err := clientcmd.NewDefaultClientConfig(*c, &clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	return r, nil
}

func harmless(c *api.Config) error {
	if len(c.Clusters) == 0 || len(c.Contexts) == 0 {
		return errors.New("the kubeconfig has no cluster or no context; make the secret again with create-remote-secret")
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
