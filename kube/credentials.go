package kube

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/carrick-mesh/carrick/mesh"
)

// accessPoll is how soon a permission that comes later is seen.
const accessPoll = 5 * time.Second

// credentials are the namespaces beside the control plane's own whose Secrets are wanted, because
// gateways there serve with them, and where each stands.
type credentials struct {
	mu     sync.Mutex
	wanted map[string]*access
	poke   chan struct{}
}

type access struct {
	listed bool
	denied bool
}

// ReadCredentials says in which namespaces gateways need Secrets now. They are watched as far as
// the API server allows; those of other namespaces are forgotten.
func (c *Clusters) ReadCredentials(namespaces []string) {
	s := &c.credentials
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := map[string]*access{}
	for _, ns := range namespaces {
		if ns == c.local.Namespace {
			continue // is watched anyway
		}
		if wanted[ns] = s.wanted[ns]; wanted[ns] == nil {
			wanted[ns] = &access{}
		}
	}
	changed := len(wanted) != len(s.wanted)
	for ns := range wanted {
		changed = changed || s.wanted[ns] == nil
	}
	if !changed {
		return
	}
	s.wanted = wanted
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// Unreadable returns the namespaces whose Secrets are wanted and may not be read, and for each the
// command that allows it. What was read while it was allowed stays.
func (c *Clusters) Unreadable() map[string]string {
	c.credentials.mu.Lock()
	defer c.credentials.mu.Unlock()
	out := map[string]string{}
	for ns, a := range c.credentials.wanted {
		if a.denied {
			out[ns] = fmt.Sprintf("kubectl -n %[1]s create role istiod-sds --verb=get,list,watch --resource=secrets && "+
				"kubectl -n %[1]s create rolebinding istiod-sds --role=istiod-sds --serviceaccount=%[2]s:%[3]s", ns, c.local.Namespace, c.local.Account)
		}
	}
	return out
}

// settled reports whether it is known of all wanted namespaces what their Secrets are.
func (s *credentials) settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.wanted {
		if !a.listed && !a.denied {
			return false
		}
	}
	return true
}

// note changes what is known of a namespace, if it is still wanted.
func (s *credentials) note(namespace string, change func(*access)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.wanted[namespace]; a != nil {
		change(a)
	}
}

// followCredentials watches the Secrets of the wanted namespaces until ctx ends.
func (c *Clusters) followCredentials(ctx context.Context, f *feed, client *Client) {
	type watch struct {
		of     *access
		cancel context.CancelFunc
		done   chan struct{}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	running := map[string]watch{}
	for {
		c.credentials.mu.Lock()
		wanted := maps.Clone(c.credentials.wanted)
		c.credentials.mu.Unlock()
		for ns, w := range running {
			if wanted[ns] != w.of {
				w.cancel()
				<-w.done
				delete(running, ns)
			}
		}
		for ns, of := range wanted {
			if running[ns].of != nil {
				continue
			}
			one, cancel := context.WithCancel(ctx)
			w := watch{of, cancel, make(chan struct{})}
			running[ns] = w
			wg.Go(func() {
				defer close(w.done)
				defer cancel()
				c.followNamespace(one, f, client, ns)
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-c.credentials.poke:
		}
	}
}

// followNamespace watches the Secrets of a namespace, and tries again while that is not allowed.
func (c *Clusters) followNamespace(ctx context.Context, f *feed, client *Client, namespace string) {
	k := c.secretsOf(namespace)
	k.listed = func() { c.credentials.note(namespace, func(a *access) { a.listed = true }) }
	k.watching = func() { c.credentials.note(namespace, func(a *access) { a.denied = false }) }
	for ctx.Err() == nil {
		during, stop := context.WithCancel(ctx)
		f.reflect(during, client, k, k.lw(client), k.sample, func(err error) bool {
			if !apierrors.IsForbidden(err) {
				return false
			}
			c.credentials.note(namespace, func(a *access) { a.denied = true })
			stop()
			return true
		})
		stop()
		select {
		case <-ctx.Done():
		case <-time.After(accessPoll):
		}
	}
	f.recovered(k.name)
	f.replace(k.kind, namespace, nil)
}

// secretsOf is the TLS material among the Secrets of a namespace.
func (c *Clusters) secretsOf(namespace string) watched {
	return watched{name: "secrets of namespace " + namespace, sample: &corev1.Secret{}, kind: mesh.KindCredential, namespace: namespace,
		key: func(o metav1.Object) mesh.Key {
			return mesh.Key{Cluster: c.local.ID, Kind: mesh.KindCredential, Namespace: o.GetNamespace(), Name: o.GetName()}
		},
		lw: func(k *Client) cache.ListerWatcher {
			s := k.kube.CoreV1().Secrets(namespace)
			return listWatch(s.List, s.Watch, "")
		},
		convert: func(_ *feed, o runtime.Object) mesh.Object {
			if x := credential(c.local.ID, o.(*corev1.Secret)); x != nil {
				return x
			}
			return nil
		}}
}

// ownSecrets is the Secrets of the control plane's namespace, with the remote ones among them.
func (c *Clusters) ownSecrets() watched {
	k := c.secretsOf(c.local.Namespace)
	k.tap = func(name string, o runtime.Object) {
		s, _ := o.(*corev1.Secret)
		c.remoteSecret(name, s)
		if c.local.Secret != nil {
			c.local.Secret(name, s)
		}
	}
	return k
}
