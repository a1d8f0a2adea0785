package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"

	authn "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Caller is who a service account token belongs to, in the words of the API server that issued it.
type Caller struct {
	Cluster        string // the ID of the API server's cluster
	Namespace      string
	ServiceAccount string
	Pod            string // that the token is bound to, empty if none
}

// maxToken bounds what is sent to an API server to look at.
const maxToken = 16 << 10

// Review asks the API server of the cluster that the client says it is in, the own one if no
// cluster is called so, whose token it is. Audience is what the token must be for.
func (c *Clusters) Review(ctx context.Context, cluster, token, audience string) (Caller, error) {
	if token == "" || len(token) > maxToken {
		return Caller{}, fmt.Errorf("a token of %d bytes is none", len(token))
	}
	k, id, err := c.client(cluster)
	if err != nil {
		return Caller{}, fmt.Errorf("cluster %s: %w", id, err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := k.kube.AuthenticationV1().TokenReviews().Create(ctx, &authn.TokenReview{
		Spec: authn.TokenReviewSpec{Token: token, Audiences: []string{audience}}}, metav1.CreateOptions{})
	if err != nil {
		return Caller{}, fmt.Errorf("asking cluster %s whose token it is: %w", id, err)
	}
	if !r.Status.Authenticated {
		why := r.Status.Error
		if why == "" {
			why = "it is not one of its own for audience " + audience
		}
		return Caller{}, fmt.Errorf("cluster %s does not accept the token: %s", id, why)
	}
	parts := strings.Split(r.Status.User.Username, ":") // system:serviceaccount:NAMESPACE:NAME
	if len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" {
		return Caller{}, errors.New("the token is of no service account but of " + r.Status.User.Username)
	}
	who := Caller{Cluster: id, Namespace: parts[2], ServiceAccount: parts[3]}
	if names := r.Status.User.Extra["authentication.kubernetes.io/pod-name"]; len(names) == 1 {
		who.Pod = names[0]
	}
	return who, nil
}
