package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/ca"
	"github.com/carrick-mesh/carrick/install"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// meshMaker makes the steps of a mesh file.
type meshMaker struct {
	app      *app
	cmd      *cobra.Command
	file     *meshFile
	timeout  time.Duration
	clusters map[string]*cluster // by name in the mesh
}

func (m *meshMaker) namespace() string { return m.app.target.istioNamespace }

// plan looks at the clusters and says what is to be done. It changes nothing.
func (m *meshMaker) plan(ctx context.Context) (steps []step, err error) {
	add := func(some []step, err error) error {
		steps = append(steps, some...)
		return err
	}
	if err := add(m.planCA(ctx)); err != nil {
		return nil, err
	}
	for _, f := range []func(context.Context, meshCluster, *cluster) ([]step, error){m.planPools, m.planControlPlane, m.planGateway} {
		for _, c := range m.file.Clusters {
			k := m.clusters[c.Name]
			if err := add(f(ctx, c, k)); err != nil {
				return nil, k.wrong(err)
			}
		}
	}
	return steps, add(m.planSecrets(ctx))
}

// planCA finds the root that the mesh has or gets, and refuses clusters that have another.
func (m *meshMaker) planCA(ctx context.Context) (steps []step, err error) {
	dir := m.file.Root.Dir
	file := filepath.Join(dir, "root-cert.pem")
	var root string // fingerprint of the mesh's root
	switch b, err := os.ReadFile(file); {
	case err == nil:
		chain, err := chainOf(&corev1.Secret{Data: map[string][]byte{"ca-cert.pem": b}})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		root = ca.Fingerprint(chain[0])
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	owner, missing := file, false
	var secrets []step
	for _, c := range m.file.Clusters {
		k := m.clusters[c.Name]
		s := step{cluster: c.Name, what: "Secret cacerts", do: func(ctx context.Context) error { return m.installCA(ctx, c, k) }}
		secret, err := k.Kube.CoreV1().Secrets(m.namespace()).Get(ctx, "cacerts", metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			s.state, missing = "make it from "+filepath.Join(dir, c.Name), true
		case err != nil:
			return nil, k.wrong(fmt.Errorf("reading Secret cacerts: %w", err))
		default:
			chain, err := chainOf(secret)
			if err != nil {
				return nil, k.wrong(fmt.Errorf("secret cacerts: %w", err))
			}
			fp := ca.Fingerprint(chain[len(chain)-1])
			if root != "" && fp != root {
				return nil, k.wrong(fmt.Errorf("secret %s/cacerts has another root (SHA-256 %.23s…) than %s (%.23s…); give all clusters intermediates of one root: carrick ca install --replace, or another root.dir", m.namespace(), fp, owner, root))
			}
			root, owner = fp, k.context
		}
		secrets = append(secrets, s)
	}
	made := step{cluster: "(all)", what: "root CA in " + dir, do: func(context.Context) error { return m.makeRoot() }}
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) && missing {
		if root != "" {
			return nil, fmt.Errorf("%s is not there, but %s has a CA of a root already; put that root's root-cert.pem and root-key.pem into %s", file, owner, dir)
		}
		made.state = "make it, with " + m.file.Root.Key
	}
	return append([]step{made}, secrets...), nil
}

func (m *meshMaker) makeRoot() error {
	kind, err := keyFlag(m.file.Root.Key)
	if err != nil {
		return err
	}
	dir := m.file.Root.Dir
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making directory %s: %w", dir, err)
	}
	if err := absent(dir, "root-key.pem", "root-cert.pem"); err != nil {
		return err
	}
	root, err := ca.NewRoot(ca.RootOptions{Key: kind})
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, "root-key.pem"), root.KeyPEM, 0o600); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "root-cert.pem"), root.CertPEM, 0o644)
}

// installCA puts a cluster's intermediate into its Secret, and makes it if there is none.
func (m *meshMaker) installCA(ctx context.Context, c meshCluster, k *cluster) error {
	dir := filepath.Join(m.file.Root.Dir, c.Name)
	data := map[string][]byte{}
	for _, name := range []string{"ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return err
		}
		data[name] = b
	}
	if len(data) != 4 {
		root, err := readRoot(filepath.Join(m.file.Root.Dir, "root-key.pem"), filepath.Join(m.file.Root.Dir, "root-cert.pem"))
		if err != nil {
			return err
		}
		if err := absent(dir, "ca-key.pem", "ca-cert.pem"); err != nil {
			return err
		}
		kind, err := keyFlag(m.file.Root.Key)
		if err != nil {
			return err
		}
		im, err := ca.NewIntermediate(root, ca.IntermediateOptions{Cluster: c.Name, Key: kind})
		if err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("making directory %s: %w", dir, err)
		}
		for name, b := range im.Files() {
			mode := fs.FileMode(0o644)
			if name == "ca-key.pem" {
				mode = 0o600
			}
			if err := writeFile(filepath.Join(dir, name), b, mode); err != nil {
				return err
			}
			data[name] = b
		}
	}
	_, err := putCA(ctx, k, m.namespace(), data, false)
	return err
}

// planInstall makes a step of an installation; empty where nothing would change.
func (m *meshMaker) planInstall(ctx context.Context, c meshCluster, k *cluster, what string, render func() (*install.Manifest, error)) (s step, err error) {
	manifest, err := render()
	if err != nil {
		return s, err
	}
	p, err := k.Plan(ctx, manifest, false)
	if err != nil {
		return s, err
	}
	s = step{cluster: c.Name, what: what, do: func(ctx context.Context) error {
		// Planned anew: earlier steps may have changed what it depends on.
		manifest, err := render()
		if err != nil {
			return err
		}
		p, err := k.Plan(ctx, manifest, false)
		if err != nil {
			return err
		}
		rep, flush := reporter(m.cmd.OutOrStdout())
		rep.Done = func(string) {}
		defer flush()
		return k.Apply(ctx, p, m.timeout, rep)
	}}
	switch {
	case p.Before == nil:
		s.state = fmt.Sprintf("install it (%d objects)", len(p.Created)+len(p.Changed)+len(p.Kept))
	case len(p.Created)+len(p.Changed)+len(p.Removed) > 0:
		s.state = fmt.Sprintf("%d new, %d changed, %d removed", len(p.Created), len(p.Changed), len(p.Removed))
	case p.Before.Version != manifest.Version:
		s.state = fmt.Sprintf("version %s becomes %s", p.Before.Version, manifest.Version)
	}
	return s, nil
}

func (m *meshMaker) sets(c meshCluster) []string { return slices.Concat(m.file.Set, c.Set) }

var (
	poolsGVR   = schema.GroupVersionResource{Group: "metallb.io", Version: "v1beta1", Resource: "ipaddresspools"}
	adsGVR     = schema.GroupVersionResource{Group: "metallb.io", Version: "v1beta1", Resource: "l2advertisements"}
	gatewayGVR = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1alpha3", Resource: "gateways"}
)

// planPools installs the load balancer and a pool, if the file has one for the cluster.
func (m *meshMaker) planPools(ctx context.Context, c meshCluster, k *cluster) (steps []step, err error) {
	if len(c.Pools) == 0 {
		return nil, nil
	}
	var l lbFlags
	for _, s := range m.sets(c) {
		switch path, _, _ := strings.Cut(s, "="); lbSetting(path) {
		case "hub", "tag", "imagePullPolicy", "imagePullSecrets":
			l.sets = append(l.sets, s)
		}
	}
	s, err := m.planInstall(ctx, c, k, "load balancer", func() (*install.Manifest, error) {
		lc, err := l.config(m.app.version)
		if err != nil {
			return nil, err
		}
		lb, err := install.LoadBalancer(lc)
		if err == nil {
			lb.Sets = l.sets
		}
		return lb, err
	})
	if err != nil {
		return nil, err
	}
	steps = append(steps, s)
	addresses := make([]any, len(c.Pools))
	for i, p := range c.Pools {
		addresses[i] = p
	}
	for _, o := range []struct {
		gvr schema.GroupVersionResource
		obj *unstructured.Unstructured
	}{
		{poolsGVR, object("metallb.io/v1beta1", "IPAddressPool", install.LBNamespace, "mesh", map[string]any{"addresses": addresses, "autoAssign": true})},
		{adsGVR, object("metallb.io/v1beta1", "L2Advertisement", install.LBNamespace, "mesh", map[string]any{"ipAddressPools": []any{"mesh"}})},
	} {
		s, err := m.planObject(ctx, c, k, o.gvr, o.obj)
		if err != nil {
			return nil, err
		}
		steps = append(steps, s)
	}
	return steps, nil
}

func object(apiVersion, kind, namespace, name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": apiVersion, "kind": kind, "metadata": map[string]any{"namespace": namespace, "name": name}, "spec": spec,
	}}
}

// planObject makes a step of an object of the user's kinds.
func (m *meshMaker) planObject(ctx context.Context, c meshCluster, k *cluster, gvr schema.GroupVersionResource, o *unstructured.Unstructured) (step, error) {
	client := k.Dynamic.Resource(gvr).Namespace(o.GetNamespace())
	s := step{cluster: c.Name, what: o.GetKind() + " " + o.GetName(), do: func(ctx context.Context) error {
		b, err := json.Marshal(o.Object)
		if err != nil {
			return err
		}
		_, err = client.Patch(ctx, o.GetName(), types.ApplyPatchType, b, metav1.PatchOptions{FieldManager: install.Manager, Force: new(true)})
		return err
	}}
	have, err := client.Get(ctx, o.GetName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err) || meta.IsNoMatchError(err):
		s.state = "make it"
	case err != nil:
		return s, fmt.Errorf("reading %s %s: %w", o.GetKind(), o.GetName(), err)
	case !holds(have.Object["spec"], o.Object["spec"]):
		s.state = "change it to what the file says"
	}
	return s, nil
}

func (m *meshMaker) planControlPlane(ctx context.Context, c meshCluster, k *cluster) ([]step, error) {
	s, err := m.planInstall(ctx, c, k, "control plane", func() (*install.Manifest, error) {
		return m.render(m.file.operator(c), m.sets(c), k.Nodes(ctx))
	})
	return []step{s}, err
}

func (m *meshMaker) render(op map[string]any, sets []string, nodes int) (*install.Manifest, error) {
	cfg, err := install.Resolve([]map[string]any{op}, sets, m.app.version)
	if err != nil {
		return nil, err
	}
	cfg.OnNodes(nodes)
	return cfg.Render()
}

// planGateway installs the east-west gateway and opens it, where the mesh has several networks.
func (m *meshMaker) planGateway(ctx context.Context, c meshCluster, k *cluster) (steps []step, err error) {
	if m.file.networks() < 2 {
		return nil, nil
	}
	s, err := m.planInstall(ctx, c, k, "east-west gateway", func() (*install.Manifest, error) {
		return m.render(eastwestOperator(m.file.MeshID, c.Name, c.Network, ""), m.sets(c), 0)
	})
	if err != nil {
		return nil, err
	}
	steps = append(steps, s)
	if m.file.Expose == nil || *m.file.Expose {
		expose := object("networking.istio.io/v1alpha3", "Gateway", m.namespace(), "cross-network-gateway", map[string]any{
			"selector": map[string]any{"istio": "eastwestgateway"},
			"servers": []any{map[string]any{
				"port":  map[string]any{"number": int64(15443), "name": "tls", "protocol": "TLS"},
				"tls":   map[string]any{"mode": "AUTO_PASSTHROUGH"},
				"hosts": []any{"*.local"},
			}},
		})
		s, err := m.planObject(ctx, c, k, gatewayGVR, expose)
		if err != nil {
			return nil, err
		}
		steps = append(steps, s)
	}
	address := step{cluster: c.Name, what: "address of the east-west gateway", do: func(ctx context.Context) error {
		return m.poll(ctx, "Service istio-eastwestgateway gets an address: is there a load balancer, and a pool with a free address? carrick lb status --context="+k.context,
			func() (bool, error) { return m.gatewayHasAddress(ctx, k) })
	}}
	if ok, err := m.gatewayHasAddress(ctx, k); err != nil {
		return nil, err
	} else if !ok {
		address.state = "wait for it"
	}
	return append(steps, address), nil
}

func (m *meshMaker) gatewayHasAddress(ctx context.Context, k *cluster) (bool, error) {
	s, err := k.Kube.CoreV1().Services(m.namespace()).Get(ctx, "istio-eastwestgateway", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil && len(s.Status.LoadBalancer.Ingress) > 0, err
}

// planSecrets lets each control plane watch each other cluster.
func (m *meshMaker) planSecrets(ctx context.Context) (steps []step, err error) {
	for _, to := range m.file.Clusters {
		peer := m.clusters[to.Name]
		watches := step{cluster: to.Name, what: "watches all clusters", do: func(ctx context.Context) error {
			return m.poll(ctx, "all clusters are synced: see carrick remote-clusters --context="+peer.context,
				func() (bool, error) { return m.watchesAll(ctx, peer), nil })
		}}
		for _, from := range m.file.Clusters {
			if from.Name == to.Name {
				continue
			}
			s := step{cluster: to.Name, what: "remote secret of " + from.Name, do: func(ctx context.Context) error {
				return m.putSecret(ctx, from, peer)
			}}
			have, err := peer.Kube.CoreV1().Secrets(m.namespace()).Get(ctx, "istio-remote-secret-"+from.Name, metav1.GetOptions{})
			switch {
			case apierrors.IsNotFound(err):
				s.state = "make it"
			case err != nil:
				return nil, peer.wrong(fmt.Errorf("reading the remote secret: %w", err))
			case !m.secretHolds(ctx, from, have):
				s.state = "make it anew: its token or server is another"
			}
			steps = append(steps, s)
		}
		if !m.watchesAll(ctx, peer) {
			watches.state = "wait until they are synced"
		}
		steps = append(steps, watches)
	}
	return steps, nil
}

// secretHolds reports whether a remote secret has the token that the cluster gave for it.
func (m *meshMaker) secretHolds(ctx context.Context, from meshCluster, have *corev1.Secret) bool {
	token, err := m.clusters[from.Name].Kube.CoreV1().Secrets(m.namespace()).Get(ctx, install.ReaderServiceAccount+"-istio-remote-secret-token", metav1.GetOptions{})
	if err != nil || len(token.Data["token"]) == 0 {
		return false
	}
	kubeconfig := have.Data[from.Name]
	return bytes.Contains(kubeconfig, token.Data["token"]) && (from.Server == "" || bytes.Contains(kubeconfig, []byte(from.Server)))
}

func (m *meshMaker) putSecret(ctx context.Context, from meshCluster, peer *cluster) error {
	f := remoteSecretFlags{name: from.Name, server: from.Server, account: install.ReaderServiceAccount, createAccount: true, authType: "bearer-token", kind: "remote"}
	b, err := f.make(m.cmd, m.clusters[from.Name], m.namespace())
	if err != nil {
		return err
	}
	var secret corev1.Secret
	if err := yaml.Unmarshal(bytes.TrimSuffix(b, []byte("---\n")), &secret); err != nil {
		return fmt.Errorf("reading the remote secret back: %w", err)
	}
	secrets := peer.Kube.CoreV1().Secrets(m.namespace())
	have, err := secrets.Get(ctx, secret.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = secrets.Create(ctx, &secret, metav1.CreateOptions{FieldManager: install.Manager})
		return err
	}
	if err != nil {
		return err
	}
	have.Labels, have.Annotations, have.StringData = secret.Labels, secret.Annotations, secret.StringData
	_, err = secrets.Update(ctx, have, metav1.UpdateOptions{FieldManager: install.Manager})
	return err
}

// watchesAll asks a control plane; one that does not answer watches nothing yet.
func (m *meshMaker) watchesAll(ctx context.Context, k *cluster) bool {
	_, answers, err := k.debug(ctx, m.namespace(), "/debug/clusterz")
	if err != nil || len(answers) == 0 {
		return false
	}
	for _, b := range answers {
		var all []clusterState
		if json.Unmarshal(b, &all) != nil {
			return false
		}
		for _, c := range m.file.Clusters {
			if !slices.ContainsFunc(all, func(s clusterState) bool { return s.ID == c.Name && s.SyncStatus == "synced" }) {
				return false
			}
		}
	}
	return true
}

// poll waits for a condition until the command's timeout.
func (m *meshMaker) poll(ctx context.Context, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %s", m.timeout, what)
		case <-tick.C:
		}
	}
}
