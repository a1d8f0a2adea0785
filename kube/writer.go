package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	admission "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"github.com/carrick-mesh/carrick/mesh"
)

// ignored are namespaces that nobody runs workloads of a mesh in.
var ignored = map[string]bool{"kube-system": true, "kube-public": true, "kube-node-lease": true, "local-path-storage": true}

// Writer writes to the own cluster what the control plane has decided: the roots into every
// namespace, the webhooks' caBundle, and what is wrong with objects. Of several replicas, one
// writes: the holder of a Lease. What all revisions would write alike, only one of all writes; the
// caBundle of a revision's webhooks is a matter of its own replicas.
type Writer struct {
	client    *Client
	cluster   string
	namespace string
	identity  string
	revision  string
	log       *slog.Logger
	poke      [2]chan struct{} // of those who may lead: shared, hooks

	mu       sync.Mutex
	trust    Trust
	findings map[mesh.Key][]mesh.Finding // nil until told

	// Owned by the goroutine that leads.
	told map[mesh.Key][]mesh.Finding
}

// NewWriter returns the writer of one replica, whose name is identity (of its Pod), to the own
// cluster. Revision is empty or "default" for the default one.
func NewWriter(c *Client, cluster, namespace, identity, revision string, log *slog.Logger) *Writer {
	if revision == "default" {
		revision = ""
	}
	return &Writer{client: c, cluster: cluster, namespace: namespace, identity: identity, revision: revision, log: log,
		poke: [2]chan struct{}{make(chan struct{}, 1), make(chan struct{}, 1)}}
}

// SetFindings says all that is wrong with objects now. Those of other clusters are for their own
// control planes to write to.
func (w *Writer) SetFindings(all map[mesh.Key][]mesh.Finding) {
	all = maps.Clone(all)
	maps.DeleteFunc(all, func(k mesh.Key, _ []mesh.Finding) bool { return k.Cluster != w.cluster })
	if all == nil {
		all = map[mesh.Key][]mesh.Finding{}
	}
	w.mu.Lock()
	w.findings = all
	w.mu.Unlock()
	w.stir()
}

func (w *Writer) stir() {
	for _, c := range w.poke {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (w *Writer) suffixed(name string) string {
	if w.revision == "" {
		return name
	}
	return name + "-" + w.revision
}

// Run takes part in the elections until ctx ends, and writes while it leads.
func (w *Writer) Run(ctx context.Context) error {
	ctx = klog.NewContext(ctx, logr.Discard())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.elect(ctx, "istio-namespace-controller-election", w.leadShared) })
	g.Go(func() error { return w.elect(ctx, w.suffixed("istio-leader"), w.leadHooks) })
	return g.Wait()
}

// elect calls lead whenever this replica holds the lease, with a context that ends with that.
func (w *Writer) elect(ctx context.Context, lease string, lead func(context.Context)) error {
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: w.namespace, Name: lease},
		Client:     w.client.kube.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: w.identity},
	}
	var leading sync.Mutex // the elector does not wait for who leads
	for ctx.Err() == nil {
		e, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
			ReleaseOnCancel: true, Name: lease,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) {
					leading.Lock()
					defer leading.Unlock()
					w.log.Info("this replica writes to the cluster", "lease", lease)
					lead(ctx)
				},
				OnStoppedLeading: func() {},
			},
		})
		if err != nil {
			return fmt.Errorf("joining the election of %s: %w", lock.Describe(), err)
		}
		e.Run(ctx) // until ctx ends or the lease is lost
		leading.Lock()
		leading.Unlock()
	}
	return nil
}

// leadShared writes the roots into every namespace, and findings, until ctx ends.
func (w *Writer) leadShared(ctx context.Context) {
	w.told = nil
	var wg sync.WaitGroup
	defer wg.Wait()
	spaces := w.client.metadata.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"})
	configs := w.client.kube.CoreV1().ConfigMaps("")
	namespaces := w.follow(ctx, &wg, "namespaces", &metav1.PartialObjectMetadata{}, listWatch(spaces.List, spaces.Watch, ""))
	roots := w.follow(ctx, &wg, "roots", &corev1.ConfigMap{}, listWatch(configs.List, configs.Watch, "metadata.name="+RootsConfigMap))
	revoked := w.follow(ctx, &wg, "revocation lists", &corev1.ConfigMap{}, listWatch(configs.List, configs.Watch, "metadata.name="+RevokedConfigMap))
	w.whenever(ctx, w.poke[0], func(t Trust, findings map[mesh.Key][]mesh.Finding) (failed bool) {
		if t.Roots != "" && namespaces.listed() && roots.listed() && revoked.listed() {
			failed = w.writeTrust(ctx, t, namespaces, roots, revoked)
		}
		if findings != nil {
			failed = w.writeFindings(ctx, findings) || failed
		}
		return failed
	})
}

// leadHooks writes the caBundle of this revision's webhooks until ctx ends.
func (w *Writer) leadHooks(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	hooks := w.client.kube.AdmissionregistrationV1().MutatingWebhookConfigurations()
	webhooks := w.follow(ctx, &wg, "webhooks", &admission.MutatingWebhookConfiguration{}, listWatch(hooks.List, hooks.Watch, ""))
	checks := w.client.kube.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	validators := w.follow(ctx, &wg, "validators", &admission.ValidatingWebhookConfiguration{}, listWatch(checks.List, checks.Watch, ""))
	w.whenever(ctx, w.poke[1], func(t Trust, _ map[mesh.Key][]mesh.Finding) (failed bool) {
		if t.Roots != "" && webhooks.listed() {
			failed = w.writeBundles(ctx, t.Roots, webhooks)
		}
		if t.Roots != "" && validators.listed() {
			failed = w.writeValidators(ctx, t.Roots, validators) || failed
		}
		return failed
	})
}

// whenever calls write when it is poked, and again after a while, sooner if something failed,
// until ctx ends.
func (w *Writer) whenever(ctx context.Context, poke <-chan struct{}, write func(t Trust, findings map[mesh.Key][]mesh.Finding) (failed bool)) {
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-poke:
		case <-again.C:
		}
		w.mu.Lock()
		trust, findings := w.trust, w.findings
		w.mu.Unlock()
		wait := time.Minute
		if write(trust, findings) {
			wait = 3 * time.Second
		}
		again.Reset(wait)
	}
}

func (w *Writer) follow(ctx context.Context, wg *sync.WaitGroup, name string, sample runtime.Object, lw cache.ListerWatcher) *followed {
	f := &followed{Store: cache.NewStore(cache.MetaNamespaceKeyFunc), changed: w.stir}
	wg.Go(func() {
		quiet := logr.Discard()
		cache.NewReflectorWithOptions(lw, sample, f, cache.ReflectorOptions{Name: name, Logger: &quiet,
			Backoff: &wait.Backoff{Duration: time.Second, Factor: 2, Jitter: 0.5, Steps: 4, Cap: 8 * time.Second}}).RunWithContext(ctx)
	})
	return f
}

// followed is a store that tells of changes.
type followed struct {
	cache.Store
	changed func()
	mu      sync.Mutex
	whole   bool
}

func (f *followed) Add(o any) error    { err := f.Store.Add(o); f.changed(); return err }
func (f *followed) Update(o any) error { err := f.Store.Update(o); f.changed(); return err }
func (f *followed) Delete(o any) error { err := f.Store.Delete(o); f.changed(); return err }
func (f *followed) Replace(os []any, v string) error {
	err := f.Store.Replace(os, v)
	f.mu.Lock()
	f.whole = true
	f.mu.Unlock()
	f.changed()
	return err
}

// Transformer drops what nobody here reads.
func (f *followed) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		if m, ok := o.(metav1.Object); ok {
			m.SetManagedFields(nil)
		}
		return o, nil
	}
}

func (f *followed) listed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.whole
}

// failure logs that something could not be written, and says so.
func (w *Writer) failure(ctx context.Context, what, name string, err error) bool {
	if ctx.Err() == nil {
		w.log.Warn("cannot write "+what, "name", name, "error", err)
	}
	return true
}

// writeBundles fills in the caBundle of our webhooks: those of our revision, and of tags for it.
func (w *Writer) writeBundles(ctx context.Context, pem string, webhooks *followed) (failed bool) {
	bundle := plainPEM(pem)
	rev := w.revision
	if rev == "" {
		rev = "default"
	}
	for _, o := range webhooks.List() {
		h := o.(*admission.MutatingWebhookConfiguration)
		ours := h.Name == w.suffixed("istio-sidecar-injector") ||
			strings.HasPrefix(h.Name, "istio-revision-tag-") && h.Labels["istio.io/rev"] == rev
		if !ours {
			continue
		}
		type operation struct {
			Op    string `json:"op"`
			Path  string `json:"path"`
			Value any    `json:"value"`
		}
		var patch []operation
		for i, x := range h.Webhooks {
			s := x.ClientConfig.Service
			if s == nil || s.Namespace != w.namespace || string(x.ClientConfig.CABundle) == bundle {
				continue
			}
			patch = append(patch, operation{"test", fmt.Sprintf("/webhooks/%d/name", i), x.Name},
				operation{"add", fmt.Sprintf("/webhooks/%d/clientConfig/caBundle", i), []byte(bundle)})
		}
		if patch == nil {
			continue
		}
		data, err := json.Marshal(patch)
		if err == nil {
			call, cancel := context.WithTimeout(ctx, callTimeout)
			_, err = w.client.kube.AdmissionregistrationV1().MutatingWebhookConfigurations().Patch(call, h.Name, types.JSONPatchType, data, metav1.PatchOptions{})
			cancel()
		}
		if err != nil && !apierrors.IsNotFound(err) {
			failed = w.failure(ctx, "the caBundle of webhook", h.Name, err)
		}
	}
	return failed
}

// plainPEM drops comments between PEM blocks.
func plainPEM(pem string) string {
	var b strings.Builder
	for line := range strings.Lines(pem) {
		if !strings.HasPrefix(line, "#") {
			b.WriteString(line)
		}
	}
	return b.String()
}
