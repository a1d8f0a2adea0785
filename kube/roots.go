package kube

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/carrick-mesh/carrick/certs"
)

// maxRoots bounds what is parsed of a ConfigMap of roots: a mesh has one, two during a roll.
const maxRoots = 32

// trust is the roots that the own cluster publishes, for its members to compare theirs with.
type trust struct {
	namespace string // of the control plane, here and in the other clusters

	mu    sync.Mutex
	roots []*x509.Certificate
}

func (t *trust) set(pem string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.roots, _ = parseRoots(pem) // this cluster's own CA has written them
}

func (t *trust) get() []*x509.Certificate {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.roots
}

// peerRoots is what another cluster says of its roots.
type peerRoots struct {
	roots []*x509.Certificate
	note  string // why they are not known
}

// read asks a cluster for its roots. If it does not answer, what it last said stays.
func (t *trust) read(ctx context.Context, c *Client, last peerRoots) peerRoots {
	ctx, cancel := context.WithTimeout(ctx, callTimeout/2)
	defer cancel()
	m, err := c.kube.CoreV1().ConfigMaps(t.namespace).Get(ctx, RootsConfigMap, metav1.GetOptions{})
	object := fmt.Sprintf("ConfigMap %s of its namespace %s", RootsConfigMap, t.namespace)
	switch {
	case apierrors.IsForbidden(err):
		return peerRoots{note: "its roots cannot be compared with this cluster's: the remote secret's account may not read " + object +
			"; carrick install or upgrade in that cluster allows it"}
	case apierrors.IsNotFound(err):
		return peerRoots{note: "its roots cannot be compared with this cluster's: there is no " + object}
	case err != nil:
		return last
	}
	roots, err := parseRoots(m.Data[RootsKey])
	if err != nil {
		return peerRoots{note: "its roots cannot be compared with this cluster's: data." + RootsKey + " of " + object + " " + err.Error()}
	}
	return peerRoots{roots: roots}
}

// mismatch says why workloads of two clusters do not trust each other; it is empty if they share a
// root, as they do while one is being replaced, or if one side's roots are not known.
func mismatch(theirs, ours []*x509.Certificate) string {
	if len(theirs) == 0 || len(ours) == 0 {
		return ""
	}
	for _, x := range theirs {
		// A root that was issued again with its key verifies what the former one does.
		if slices.ContainsFunc(ours, func(y *x509.Certificate) bool {
			same := bytes.Equal(x.RawSubject, y.RawSubject) && bytes.Equal(x.RawSubjectPublicKeyInfo, y.RawSubjectPublicKeyInfo)
			// An anchor need not be self-signed: what one side trusts may be issued by the other's.
			return same || x.CheckSignatureFrom(y) == nil || y.CheckSignatureFrom(x) == nil
		}) {
			return ""
		}
	}
	return fmt.Sprintf("it shares no root certificate with this cluster, so workloads of the two refuse each other: its root is %s; this cluster's root is %s; "+
		"give both clusters' CAs one root: carrick ca root, then for each of the two carrick ca intermediate and carrick ca install", describeRoots(theirs), describeRoots(ours))
}

func describeRoots(roots []*x509.Certificate) string {
	var all []string
	for _, r := range roots {
		all = append(all, fmt.Sprintf("%q (SHA-256 %x)", r.Subject, sha256.Sum256(r.Raw)))
	}
	return strings.Join(all, " and ")
}

// parseRoots returns the certificates of a PEM text, at most maxRoots.
func parseRoots(text string) ([]*x509.Certificate, error) {
	roots, err := certs.Certificates([]byte(text))
	return roots[:min(len(roots), maxRoots)], err
}
