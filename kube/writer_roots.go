package kube

import (
	"context"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	rights "github.com/carrick-mesh/carrick/schema/access"
)

// The ConfigMaps of every namespace with what its workloads verify peers with, and their keys.
const (
	RootsConfigMap   = rights.RootsConfigMap
	RootsKey         = "root-cert.pem"
	RevokedConfigMap = rights.RevokedConfigMap
	RevokedKey       = "ca-crl.pem"
)

// Trust is what every namespace is told.
type Trust struct {
	Roots   string // PEM
	Revoked string // revocation lists, PEM; empty for none
	// Settled says that there is a CA, so that Revoked is known. Before that, lists that a namespace
	// has stay.
	Settled bool
}

// SetRoots says what workloads verify their peers with.
func (w *Writer) SetRoots(t Trust) {
	w.mu.Lock()
	w.trust = t
	w.mu.Unlock()
	w.stir()
}

// writeTrust writes both ConfigMaps into every namespace.
func (w *Writer) writeTrust(ctx context.Context, t Trust, namespaces, roots, revoked *followed) (failed bool) {
	for _, o := range namespaces.List() {
		ns := o.(*metav1.PartialObjectMetadata)
		if ignored[ns.Name] || ns.DeletionTimestamp != nil {
			continue
		}
		failed = w.writeConfigMap(ctx, roots, configMap(ns.Name, RootsConfigMap, RootsKey, t.Roots)) || failed
		switch _, there, _ := revoked.GetByKey(ns.Name + "/" + RevokedConfigMap); {
		case t.Revoked != "":
			failed = w.writeConfigMap(ctx, revoked, configMap(ns.Name, RevokedConfigMap, RevokedKey, t.Revoked)) || failed
		case there && t.Settled:
			failed = w.dropConfigMap(ctx, ns.Name, RevokedConfigMap) || failed
		}
	}
	return failed
}

func configMap(namespace, name, key, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{"istio.io/config": "true"}},
		Data:       map[string]string{key: value},
	}
}

// writeConfigMap makes a ConfigMap hold that data alone.
func (w *Writer) writeConfigMap(ctx context.Context, now *followed, want *corev1.ConfigMap) (failed bool) {
	api := w.client.kube.CoreV1().ConfigMaps(want.Namespace)
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var err error
	if o, there, _ := now.GetByKey(want.Namespace + "/" + want.Name); !there {
		_, err = api.Create(call, want, metav1.CreateOptions{})
	} else if have := o.(*corev1.ConfigMap); !maps.Equal(have.Data, want.Data) {
		have = have.DeepCopy()
		have.Data = want.Data
		_, err = api.Update(call, have, metav1.UpdateOptions{})
	}
	return w.trustFailure(ctx, want.Name, want.Namespace, err)
}

func (w *Writer) dropConfigMap(ctx context.Context, namespace, name string) (failed bool) {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := w.client.kube.CoreV1().ConfigMaps(namespace).Delete(call, name, metav1.DeleteOptions{})
	return w.trustFailure(ctx, name, namespace, err)
}

// trustFailure logs what a look at the watch's next news does not settle.
func (w *Writer) trustFailure(ctx context.Context, name, namespace string, err error) bool {
	switch {
	case err == nil, apierrors.IsAlreadyExists(err), apierrors.IsConflict(err): // the watch will tell, and we look again
	case apierrors.IsNotFound(err), apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause): // the namespace goes
	default:
		return w.failure(ctx, "ConfigMap "+name+" of namespace", namespace, err)
	}
	return false
}
