package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/carrick-mesh/carrick/install"
	"github.com/carrick-mesh/carrick/lb"
)

// analyzePools finds IPAddressPools that give out nothing. A cluster without the kind has none.
func (a *app) analyzePools(ctx context.Context, c *cluster) (out []message, err error) {
	pools, err := c.Dynamic.Resource(lb.PoolResource).Namespace(install.LBNamespace).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing IPAddressPools: %w", err)
	}
	problems := lb.Problems(pools.Items)
	for _, name := range slices.Sorted(maps.Keys(problems)) {
		out = append(out, message{
			Level: "Error", Origin: "IPAddressPool " + install.LBNamespace + "/" + name, Field: "spec.addresses",
			Message: problems[name].Error(), Fix: "change or remove the pool; Services keep the addresses that they have",
		})
	}
	return out, nil
}
