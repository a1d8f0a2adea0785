package lb

import (
	"context"
	"encoding/json"
	"fmt"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/carrick-mesh/carrick/lb/pool"
)

// Who had which address outlives the controller in an annotation of this Lease, so that an address which
// was freed while no controller ran is kept for its Service, too.
const (
	holdsLease      = "carrick-lb-addresses"
	holdsAnnotation = "carrick.dev/addresses"
)

// readHolds returns what the Lease says; a Lease that is not there says nothing.
func readHolds(ctx context.Context, k kubernetes.Interface, namespace string) (pool.Holds, error) {
	l, err := k.CoordinationV1().Leases(namespace).Get(ctx, holdsLease, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && l.Annotations[holdsAnnotation] == "" {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading Lease %s/%s: %w", namespace, holdsLease, err)
	}
	var h pool.Holds
	if err := json.Unmarshal([]byte(l.Annotations[holdsAnnotation]), &h); err != nil {
		return nil, fmt.Errorf("Lease %s/%s: annotation %s: %w", namespace, holdsLease, holdsAnnotation, err)
	}
	return h, nil
}

// writeHolds puts h into the Lease.
func writeHolds(ctx context.Context, k kubernetes.Interface, namespace string, h pool.Holds) error {
	text, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("encoding who has which address: %w", err)
	}
	want := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
		Name: holdsLease, Namespace: namespace, Annotations: map[string]string{holdsAnnotation: string(text)},
	}}
	data, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("encoding a Lease: %w", err)
	}
	leases := k.CoordinationV1().Leases(namespace)
	_, err = leases.Patch(ctx, holdsLease, types.MergePatchType, data, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, want, metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("writing Lease %s/%s: %w", namespace, holdsLease, err)
	}
	return nil
}
