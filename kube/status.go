package kube

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apischema "k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/schema"
)

// statusesAtOnce is after how many objects it is looked whether something more urgent is to be written.
const statusesAtOnce = 100

// writeFindings puts what is wrong on the objects, and takes away what is not so any more.
func (w *Writer) writeFindings(ctx context.Context, all map[mesh.Key][]mesh.Finding) (failed bool) {
	if w.told == nil {
		left, err := w.left(ctx)
		if err != nil {
			return w.failure(ctx, "statuses", "", err)
		}
		w.told = left
	}
	keys := maps.Clone(all)
	for k := range w.told {
		keys[k] = nil
	}
	written := 0
	for k := range keys {
		now, was := all[k], w.told[k]
		if slices.Equal(now, was) {
			continue
		}
		if written++; written > statusesAtOnce {
			w.stir()
			return failed
		}
		if err := w.writeFinding(ctx, k, now); err != nil {
			failed = w.failure(ctx, "the status of", k.String(), err)
			continue
		}
		if w.told[k] = now; len(now) == 0 {
			delete(w.told, k)
		}
	}
	return failed
}

// left returns the objects on which a former leader left complaints.
func (w *Writer) left(ctx context.Context) (map[mesh.Key][]mesh.Finding, error) {
	left := map[mesh.Key][]mesh.Finding{}
	for _, k := range schema.Kinds() {
		if k.Status == schema.NoStatus {
			continue
		}
		api, _, err := w.resource(ctx, k)
		if err != nil {
			return nil, err
		}
		if api == nil {
			continue
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		l, err := api.List(call, metav1.ListOptions{})
		cancel()
		if apierrors.IsForbidden(err) && !k.Implemented {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing %s: %w", k.Plural, err)
		}
		for i := range l.Items {
			if u := &l.Items[i]; isTold(u, k) {
				key := keyOf(w.cluster, k, u)
				left[key] = []mesh.Finding{{Object: key}}
			}
		}
	}
	return left, nil
}

// resource returns the client of a kind and the version that it takes, nil if the API server does not
// have the kind.
func (w *Writer) resource(ctx context.Context, k schema.Kind) (dynamic.NamespaceableResourceInterface, string, error) {
	version, err := served(ctx, w.client, k)
	if err != nil || version == "" {
		return nil, "", err
	}
	gvr := apischema.GroupVersionResource{Group: k.Group, Version: version, Resource: k.Plural}
	return w.client.dynamic.Resource(gvr), k.Group + "/" + version, nil
}

func (w *Writer) writeFinding(ctx context.Context, key mesh.Key, now []mesh.Finding) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	about := corev1.ObjectReference{Kind: key.Kind, Namespace: key.Namespace, Name: key.Name, APIVersion: "v1"}
	v := verdictOf(now)
	if k, ok := schema.Named(key.Kind); ok {
		api, version, err := w.resource(ctx, k)
		if err != nil || api == nil {
			return err
		}
		u, err := api.Namespace(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading it: %w", err)
		}
		about.Kind, about.APIVersion, about.UID = k.Kind, version, u.GetUID()
		changed, err := tell(u, k, v, time.Now())
		if err != nil {
			return err
		}
		if changed {
			_, err := api.Namespace(key.Namespace).UpdateStatus(ctx, u, metav1.UpdateOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("writing it: %w", err)
			}
		}
	} else if key.Kind == "Secret" && len(now) > 0 {
		s, err := w.client.kube.CoreV1().Secrets(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading it: %w", err)
		}
		about.UID = s.UID
	} else if key.Kind == "ConfigMap" && len(now) > 0 {
		m, err := w.client.kube.CoreV1().ConfigMaps(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading it: %w", err)
		}
		about.UID = m.UID
	}
	if len(now) == 0 {
		return nil
	}
	return w.event(ctx, about, v)
}

// event tells of a problem; the same problem again counts up.
func (w *Writer) event(ctx context.Context, about corev1.ObjectReference, v verdict) error {
	message := v.message
	if len(message) > 1000 {
		message = message[:1000] + "…"
	}
	namespace := about.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%s/%s/%s: %s", about.Kind, about.Namespace, about.Name, about.UID, message)
	name := fmt.Sprintf("%.200s.%x", about.Name, h.Sum64())
	now := metav1.Now()
	api := w.client.kube.CoreV1().Events(namespace)
	e := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, InvolvedObject: about, Reason: v.reason, Message: message,
		Type: corev1.EventTypeWarning, Source: corev1.EventSource{Component: "istiod"}, FirstTimestamp: now, LastTimestamp: now, Count: 1}
	_, err := api.Create(ctx, e, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = api.Patch(ctx, name, types.MergePatchType, fmt.Appendf(nil, `{"lastTimestamp":%q}`, now.UTC().Format(time.RFC3339)), metav1.PatchOptions{})
	}
	if err != nil {
		return fmt.Errorf("writing an event: %w", err)
	}
	return nil
}
