package kube

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/carrick-mesh/carrick/mesh"
)

// Label of Secrets that hold the kubeconfigs of other clusters.
const remoteLabel = "istio/multiCluster"

// Local is the cluster that the control plane runs in.
type Local struct {
	ID        string       // of the cluster, as the mesh calls it
	Config    *rest.Config // of its API server
	Namespace string       // the control plane's, "istio-system"
	MeshName  string       // of the ConfigMap with the mesh's settings; empty for "istio"
	Injector  string       // of the ConfigMap with the injector's; empty for "istio-sidecar-injector"
	Account   string       // the control plane's service account, for commands that are proposed; empty for "istiod"

	// ConfigMap, if set, is shown the ConfigMaps above and that of the roots, and Secret the Secrets of
	// Namespace, nil when one is gone. They are called from a goroutine of a watch and must not wait.
	ConfigMap func(name string, data map[string]string)
	Secret    func(name string, s *corev1.Secret)
}

// Clusters watches the own cluster and all that remote secrets name.
type Clusters struct {
	local   Local
	sink    Sink
	log     *slog.Logger
	resolve *resolver
	trust   *trust
	own     *member
	poke    chan struct{}

	credentials credentials

	mu      sync.Mutex
	secrets map[string]map[string][]byte // remote secrets in the namespace: name, then cluster
	remotes map[string]*remote
	clashes map[string]map[string]string // by secret and cluster, why a key is not taken
	told    map[string]bool              // secrets that findings were told of
	changed bool                         // secrets have changed since the last reconcile
}

type remote struct {
	*member
	data   []byte
	cancel context.CancelFunc
	done   chan struct{}
	gone   bool // its secret has gone; owned by Clusters.mu
}

// NewClusters returns what Run works with.
func NewClusters(local Local, sink Sink, log *slog.Logger) *Clusters {
	local.MeshName, local.Injector, local.Account = cmp.Or(local.MeshName, "istio"), cmp.Or(local.Injector, "istio-sidecar-injector"), cmp.Or(local.Account, "istiod")
	c := &Clusters{local: local, sink: sink, log: log, resolve: newResolver(), trust: &trust{namespace: local.Namespace}, poke: make(chan struct{}, 1),
		secrets: map[string]map[string][]byte{}, remotes: map[string]*remote{}, told: map[string]bool{}}
	c.credentials.poke = make(chan struct{}, 1)
	kinds := slices.Concat(remoteKinds(local.ID), configKinds(local.ID), []watched{c.meshConfigMap(), c.configMap(c.local.Injector), c.configMap(RootsConfigMap), c.ownSecrets(), {name: "credentials", run: c.followCredentials}})
	c.own = c.member(local.ID, "", kinds)
	return c
}

func (c *Clusters) member(id, secret string, kinds []watched) *member {
	return &member{id: id, secret: secret, kinds: kinds, sink: c.sink, resolve: c.resolve, log: c.log,
		changed: c.report, configs: make(chan config, 1), status: ClusterStatus{ID: id, Secret: secret, Status: Syncing}}
}

// Run watches until ctx ends.
func (c *Clusters) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	c.own.set(config{rest: c.local.Config})
	wg.Go(func() { c.own.run(ctx, func() bool { return false }) })
	wg.Go(func() { c.resolve.run(ctx) })
	for {
		c.reconcile(ctx, &wg)
		select {
		case <-ctx.Done():
			return nil
		case <-c.poke:
		}
	}
}

// reconcile starts, changes and stops remote clusters as the secrets say.
func (c *Clusters) reconcile(ctx context.Context, wg *sync.WaitGroup) {
	type source struct {
		secret string
		data   []byte
	}
	want := map[string]source{}
	clashes := map[string]map[string]string{}
	clash := func(secret, id, why string) {
		if clashes[secret] == nil {
			clashes[secret] = map[string]string{}
		}
		clashes[secret][id] = why
	}
	c.mu.Lock()
	for _, secret := range slices.Sorted(maps.Keys(c.secrets)) {
		for id, data := range c.secrets[secret] {
			switch first, taken := want[id]; {
			case id == c.local.ID:
				clash(secret, id, fmt.Sprintf("%s is this cluster's own name; name the other cluster differently (create-remote-secret --name) in its control plane and here", id))
			case taken:
				clash(secret, id, fmt.Sprintf("cluster %s is named by secret %s already; delete one of the two", id, first.secret))
			default:
				want[id] = source{secret, data}
			}
		}
	}
	c.clashes, c.changed = clashes, false
	var stopped []*remote
	for id, r := range c.remotes {
		if _, ok := want[id]; !ok {
			r.gone = true
			stopped = append(stopped, r)
			delete(c.remotes, id)
		}
	}
	for id, w := range want {
		r := c.remotes[id]
		if r == nil {
			one, cancel := context.WithCancel(ctx)
			r = &remote{member: c.member(id, w.secret, remoteKinds(id)), cancel: cancel, done: make(chan struct{})}
			r.trust = c.trust
			c.remotes[id] = r
			wg.Go(func() {
				defer close(r.done)
				defer cancel()
				r.run(one, func() bool { c.mu.Lock(); defer c.mu.Unlock(); return r.gone })
			})
		} else if r.name(w.secret); bytes.Equal(r.data, w.data) {
			continue
		}
		r.data = w.data
		conf, err := RemoteConfig(w.data)
		r.set(config{rest: conf, err: err})
	}
	c.mu.Unlock()
	for _, r := range stopped {
		r.cancel()
		<-r.done
	}
	c.report()
}

// report tells what is wrong with remote secrets.
func (c *Clusters) report() {
	c.mu.Lock()
	now := map[string][]mesh.Finding{}
	key := func(secret string) mesh.Key {
		return mesh.Key{Cluster: c.local.ID, Kind: "Secret", Namespace: c.local.Namespace, Name: secret}
	}
	for secret, ids := range c.clashes {
		for id, why := range ids {
			now[secret] = append(now[secret], mesh.Finding{Object: key(secret), Field: "data." + id, Message: why})
		}
	}
	for id, r := range c.remotes {
		if s, _ := r.current(); s.Message != "" {
			now[s.Secret] = append(now[s.Secret], mesh.Finding{Object: key(s.Secret), Field: "data." + id, Message: s.Message})
		}
	}
	var healed []string
	for secret := range c.told {
		if now[secret] == nil {
			healed = append(healed, secret)
			delete(c.told, secret)
		}
	}
	for secret := range now {
		c.told[secret] = true
	}
	c.mu.Unlock()
	for _, s := range healed {
		c.sink.Findings(key(s), nil)
	}
	for s, fs := range now {
		slices.SortFunc(fs, func(a, b mesh.Finding) int { return strings.Compare(a.Field, b.Field) })
		c.sink.Findings(key(s), fs)
	}
}

// Status returns where the clusters stand: the own one first, then by ID. Remote secrets' keys that
// are not taken are in it with status error.
func (c *Clusters) Status() []ClusterStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	own, _ := c.own.current()
	var out []ClusterStatus
	for _, r := range c.remotes {
		s, _ := r.current()
		s.Secret = c.local.Namespace + "/" + s.Secret
		out = append(out, s)
	}
	for secret, ids := range c.clashes {
		for id, why := range ids {
			out = append(out, ClusterStatus{ID: id, Secret: c.local.Namespace + "/" + secret, Status: Failed, Message: why})
		}
	}
	slices.SortFunc(out, func(a, b ClusterStatus) int {
		return cmp.Or(strings.Compare(a.ID, b.ID), strings.Compare(a.Secret, b.Secret))
	})
	return append([]ClusterStatus{own}, out...)
}

// Settled reports whether the own cluster is synced and every remote one is synced or known not
// to be reachable, and which Secrets may be read: what there is to see has been seen.
func (c *Clusters) Settled() bool {
	c.mu.Lock()
	changed := c.changed
	c.mu.Unlock()
	if changed || !c.credentials.settled() {
		return false // of what came last nothing is running yet
	}
	for i, s := range c.Status() {
		if s.Status == Syncing || i == 0 && s.Status != Synced && s.Status != Stale {
			return false
		}
	}
	return true
}

// errNoClient is met before a cluster's credentials have been read.
var errNoClient = errors.New("the cluster's API server is not connected yet")

// client returns a client of the cluster that is called id, the own one's if nobody is called so:
// pods may know their cluster by a former name, and the API server has the last word anyway.
func (c *Clusters) client(id string) (*Client, string, error) {
	c.mu.Lock()
	m := c.own
	if r := c.remotes[id]; r != nil {
		m = r.member
	}
	c.mu.Unlock()
	_, k := m.current()
	if k == nil {
		return nil, m.id, errNoClient
	}
	return k, m.id, nil
}

// configMap is one of the ConfigMaps that the control plane reads; it may read no others.
func (c *Clusters) configMap(name string) watched {
	return watched{name: "configmap " + name, sample: &corev1.ConfigMap{},
		key: func(metav1.Object) mesh.Key { return mesh.Key{} },
		lw: func(k *Client) cache.ListerWatcher {
			m := k.kube.CoreV1().ConfigMaps(c.local.Namespace)
			return listWatch(m.List, m.Watch, "metadata.name="+name)
		},
		convert: func(*feed, runtime.Object) mesh.Object { return nil },
		tap: func(name string, o runtime.Object) {
			var data map[string]string
			if m, _ := o.(*corev1.ConfigMap); m != nil {
				data = m.Data
			}
			if name == RootsConfigMap {
				c.trust.set(data[RootsKey])
			}
			if c.local.ConfigMap != nil {
				c.local.ConfigMap(name, data)
			}
		}}
}

// meshConfigMap is the one with the mesh's settings.
func (c *Clusters) meshConfigMap() watched {
	w := c.configMap(c.local.MeshName)
	w.kind, w.sticky = mesh.KindMeshConfig, true
	w.key = func(metav1.Object) mesh.Key { return mesh.Key{Cluster: c.local.ID, Kind: mesh.KindMeshConfig} }
	w.convert = func(f *feed, o runtime.Object) mesh.Object {
		about := mesh.Key{Cluster: c.local.ID, Kind: "ConfigMap", Namespace: c.local.Namespace, Name: c.local.MeshName}
		m, findings := meshConfig(about, o.(*corev1.ConfigMap).Data)
		f.found(about, findings)
		if f.resolve != nil {
			f.resolve.remember(f, m, networkNames(m.Networks))
		}
		return m
	}
	return w
}

// remoteSecret notes a Secret of the namespace, or that it has gone.
func (c *Clusters) remoteSecret(name string, s *corev1.Secret) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s == nil || s.Labels[remoteLabel] != "true" {
		if c.secrets[name] == nil {
			return
		}
		delete(c.secrets, name)
	} else {
		c.secrets[name] = s.Data
	}
	c.changed = true
	select {
	case c.poke <- struct{}{}:
	default:
	}
}
