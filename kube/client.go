package kube

import (
	"context"
	"fmt"
	"net"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
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
