package cli

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// An API server that is gone, or hangs, is found out within these.
const (
	dialTimeout = 10 * time.Second
	callTimeout = time.Minute
)

// clusterError is an error from a cluster that says which cluster, and what to do.
type clusterError struct {
	text string
	err  error
}

func (e *clusterError) Error() string { return e.text }
func (e *clusterError) Unwrap() error { return e.err }

// wrong explains an error from a cluster: which, and what to do. An error that has been explained
// stays as it is.
func (c *cluster) wrong(err error) error {
	if err == nil || errors.As(err, new(*clusterError)) || errors.Is(err, context.Canceled) {
		return err
	}
	what, fix := remedy(err)
	text := fmt.Sprintf("context %s (%s): %s", c.context, c.server, what)
	if fix != "" {
		text += "; " + fix
	}
	return &clusterError{text, err}
}

// remedy shortens an error of a call to an API server to what is wrong, and says what helps.
func remedy(err error) (what, fix string) {
	what = oneLine(err)
	if call := new(url.Error); errors.As(err, &call) {
		reason := oneLine(call.Err)
		if call.Timeout() {
			reason = "no answer in time"
		}
		what = strings.Replace(what, oneLine(call), "the API server does not answer: "+reason, 1)
	}
	switch {
	case apierrors.IsUnauthorized(err):
		fix = "the kubeconfig's credentials are refused, they may have expired: get the kubeconfig, or its token, anew"
	case apierrors.IsForbidden(err):
		fix = "the kubeconfig's user may not do this: use one that may"
	case errors.As(err, new(x509.UnknownAuthorityError)) || errors.As(err, new(x509.HostnameError)) || errors.As(err, new(x509.CertificateInvalidError)):
		fix = "the server's certificate does not fit the kubeconfig's certificate-authority-data and server: get the kubeconfig anew"
	case errors.As(err, new(*net.DNSError)), errors.As(err, new(*net.OpError)), errors.As(err, new(net.Error)) && strings.Contains(what, "in time"):
		fix = "check the kubeconfig's server, and the network to it"
	case strings.Contains(what, "server gave HTTP response to HTTPS client"):
		fix = "the kubeconfig's server speaks no TLS: check its port"
	}
	return what, fix
}
