// Package identity names workloads: trust domain, namespace, service account. It knows the
// SPIFFE form of those names and nothing of keys, certificates or clusters.
package identity

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// DefaultTrustDomain is the trust domain of a mesh that names none, as in Istio.
const DefaultTrustDomain = "cluster.local"

// Identity is who a workload is. It is comparable; the zero value is nobody.
type Identity struct {
	TrustDomain    string // "cluster.local"
	Namespace      string // "sample"
	ServiceAccount string // "helloworld"
}

// String returns the SPIFFE ID in Istio's form: spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT.
func (i Identity) String() string {
	return "spiffe://" + i.TrustDomain + "/ns/" + i.Namespace + "/sa/" + i.ServiceAccount
}

// Parse reads a SPIFFE ID of Istio's form. The error names the part that is wrong.
func Parse(id string) (Identity, error) {
	s, err := spiffeid.FromString(id)
	if err != nil {
		return Identity{}, fmt.Errorf("SPIFFE ID %q: %w", id, err)
	}
	p := strings.Split(s.Path(), "/") // "", ns, NAMESPACE, sa, SERVICEACCOUNT
	if len(p) != 5 || p[1] != "ns" || p[3] != "sa" {
		return Identity{}, fmt.Errorf("SPIFFE ID %q: path %q is not /ns/NAMESPACE/sa/SERVICEACCOUNT", id, s.Path())
	}
	return Identity{TrustDomain: s.TrustDomain().Name(), Namespace: p[2], ServiceAccount: p[4]}, nil
}
