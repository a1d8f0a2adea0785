package install

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"sigs.k8s.io/yaml"
)

// istioComponent is on what Istio's charts make of a component: Base, Pilot, IngressGateways …
const istioComponent = "operator.istio.io/component"

// installers are the field managers of those who install Istio: istioctl, Helm, kubectl apply.
var installers = sets.New("istio-operator", "helm", "kubectl-client-side-apply")

// Istio describes, on one line, the control plane of Istio that stands where one of this revision
// would: its Deployment, its gateways and the pods that hold its sidecar. "" if there is none.
func (c *Cluster) Istio(ctx context.Context, namespace, revision string) (string, error) {
	d, err := c.Kube.AppsV1().Deployments(namespace).Get(ctx, "istiod"+suffix(revision), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("looking for Istio: %w", err)
	}
	if d.Labels[ManagedBy] == "carrick" {
		return "", nil
	}
	image := ""
	for _, ct := range d.Spec.Template.Spec.Containers {
		if ct.Name == "discovery" {
			image = ", image " + ct.Image
		}
	}
	gateways, err := c.Kube.AppsV1().Deployments("").List(ctx, metav1.ListOptions{LabelSelector: istioComponent + " in (IngressGateways,EgressGateways)," + ManagedBy + "!=carrick"})
	if err != nil {
		return "", fmt.Errorf("looking for Istio's gateways: %w", err)
	}
	sidecars, err := c.istioSidecars(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("Istio: Deployment %s/%s%s; %d gateways; %d pods with its sidecar", d.Namespace, d.Name, image, len(gateways.Items), sidecars), nil
}

// istioSidecars counts the pods that Istio's injector gave a sidecar.
func (c *Cluster) istioSidecars(ctx context.Context) (int, error) {
	n := 0
	opts := metav1.ListOptions{LabelSelector: "security.istio.io/tlsMode=istio", Limit: 500}
	for {
		pods, err := c.Kube.CoreV1().Pods("").List(ctx, opts)
		if err != nil {
			return 0, fmt.Errorf("looking for pods with Istio's sidecar: %w", err)
		}
		for _, p := range pods.Items {
			for _, ct := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
				if ct.Name == "istio-proxy" && len(ct.Command) == 0 { // Carrick's has a command
					n++
				}
			}
		}
		if opts.Continue = pods.Continue; opts.Continue == "" {
			return n, nil
		}
	}
}

// refusal says what stands where the manifest's objects would.
func (c *Cluster) refusal(ctx context.Context, m *Manifest, foreign []Ref) error {
	names := make([]string, 0, 5)
	for _, r := range foreign {
		if len(names) == 4 && len(foreign) > 5 {
			names = append(names, fmt.Sprintf("and %d more", len(foreign)-4))
			break
		}
		names = append(names, r.String())
	}
	istio, err := c.Istio(ctx, m.Namespace, m.Revision)
	if err != nil {
		return err
	}
	if istio == "" {
		istio = "an installation that is not Carrick's"
	}
	return fmt.Errorf("the cluster has %s; objects of the same names: %s; remove it first, or take it over with --adopt, which keeps its CA, mesh configuration, remote secrets and addresses", istio, strings.Join(names, ", "))
}

// TakenOver returns the settings of the Istio that a cluster holds, as an IstioOperator document
// to be merged under the user's: the names of cluster, mesh and network, which running proxies and
// peers go by, and who is injected, and the mesh's networks. nil if there is none. MeshConfig is not in it: Plan keeps it.
func (c *Cluster) TakenOver(ctx context.Context, namespace, revision string) (map[string]any, error) {
	name := injectorName(revision)
	cm, err := c.Kube.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading Istio's settings: %w", err)
	}
	var live, config map[string]any
	if err := json.Unmarshal([]byte(cm.Data["values"]), &live); err != nil {
		return nil, fmt.Errorf("ConfigMap %s/%s: data.values is not JSON (%w); correct it, or remove that installation", namespace, name, err)
	}
	if err := yaml.Unmarshal([]byte(cm.Data["config"]), &config); err != nil {
		return nil, fmt.Errorf("ConfigMap %s/%s: data.config is not YAML (%w); correct it, or remove that installation", namespace, name, err)
	}
	values := map[string]any{}
	for _, path := range [][]string{
		{"global", "meshID"}, {"global", "network"}, {"global", "multiCluster", "clusterName"}, {"global", "imagePullSecrets"},
		{"sidecarInjectorWebhook", "enableNamespacesByDefault"},
	} {
		v, ok, err := unstructured.NestedFieldNoCopy(live, path...)
		if err != nil || !ok || v == nil || v == "" || v == false || isEmptyList(v) {
			continue
		}
		if err := unstructured.SetNestedField(values, runtime.DeepCopyJSONValue(v), path...); err != nil {
			return nil, err
		}
	}
	for _, key := range []string{"alwaysInjectSelector", "neverInjectSelector", "injectedAnnotations"} {
		if v := config[key]; v != nil && !isEmptyList(v) && len(fmt.Sprint(v)) > len("map[]") {
			if err := unstructured.SetNestedField(values, runtime.DeepCopyJSONValue(v), "sidecarInjectorWebhook", key); err != nil {
				return nil, err
			}
		}
	}
	networks, err := c.meshNetworks(ctx, namespace, "istio"+suffix(revision))
	if err != nil {
		return nil, err
	}
	if len(networks) > 0 {
		if err := unstructured.SetNestedField(values, networks, "global", "meshNetworks"); err != nil {
			return nil, err
		}
	}
	if len(values) == 0 {
		return nil, nil
	}
	return map[string]any{"apiVersion": "install.istio.io/v1alpha1", "kind": "IstioOperator", "spec": map[string]any{"values": values}}, nil
}

// Found returns the settings of a control plane that Helm or Istio installed, as far as TakenOver reads
// them: of the first by name if there are several revisions; nil if there is none. version is the default tag.
func (c *Cluster) Found(ctx context.Context, namespace, version string) (*Config, error) {
	l, err := c.Kube.CoreV1().ConfigMaps(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing ConfigMaps of namespace %s: %w", namespace, err)
	}
	for _, cm := range l.Items {
		end, ok := strings.CutPrefix(cm.Name, injectorName(""))
		if !ok || end != "" && end[0] != '-' {
			continue
		}
		revision := strings.TrimPrefix(end, "-")
		taken, err := c.TakenOver(ctx, namespace, revision)
		if err != nil {
			return nil, err
		}
		own := map[string]any{"spec": map[string]any{"namespace": namespace, "revision": revision}}
		return Resolve([]map[string]any{taken, own}, nil, version)
	}
	return nil, nil
}

// meshNetworks returns the networks that a ConfigMap of the mesh's settings describes.
func (c *Cluster) meshNetworks(ctx context.Context, namespace, name string) (map[string]any, error) {
	cm, err := c.Kube.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading Istio's networks: %w", err)
	}
	var m struct {
		Networks map[string]any `json:"networks"`
	}
	if err := yaml.Unmarshal([]byte(cm.Data["meshNetworks"]), &m); err != nil {
		return nil, fmt.Errorf("ConfigMap %s/%s: data.meshNetworks is not YAML (%w); correct it first", namespace, name, err)
	}
	return m.Networks, nil
}

func isEmptyList(v any) bool { l, ok := v.([]any); return ok && len(l) == 0 }

// keepSelector gives a Deployment the selector that the live one has, for nobody may change it,
// and its pods the labels that this selector asks for.
func keepSelector(o, live *unstructured.Unstructured) error {
	var want, have appsv1.Deployment
	for _, x := range []struct {
		from *unstructured.Unstructured
		into *appsv1.Deployment
	}{{o, &want}, {live, &have}} {
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(x.from.Object, x.into); err != nil {
			return fmt.Errorf("%s: %w", ref(x.from), err)
		}
	}
	if have.Spec.Selector == nil || want.Spec.Selector.String() == have.Spec.Selector.String() {
		return nil
	}
	pod := maps.Clone(want.Spec.Template.Labels)
	for k, v := range have.Spec.Selector.MatchLabels {
		if mine, ok := pod[k]; ok && mine != v {
			return fmt.Errorf("%s selects pods by label %s=%s, but this installation's have %s=%s; give them that label, or delete the Deployment first", ref(o), k, v, k, mine)
		}
		pod[k] = v
	}
	sel, err := metav1.LabelSelectorAsSelector(have.Spec.Selector)
	if err != nil {
		return fmt.Errorf("%s: its selector: %w", ref(live), err)
	}
	if !sel.Matches(labels.Set(pod)) {
		return fmt.Errorf("%s selects pods by %q, which this installation's do not match; delete the Deployment first", ref(o), sel)
	}
	selector, _, err := unstructured.NestedMap(live.Object, "spec", "selector")
	if err != nil {
		return fmt.Errorf("%s: its selector: %w", ref(live), err)
	}
	if err := unstructured.SetNestedMap(o.Object, selector, "spec", "selector"); err != nil {
		return err
	}
	return unstructured.SetNestedStringMap(o.Object, pod, "spec", "template", "metadata", "labels")
}

// planAdoption finds what of the Istio that is taken over has no counterpart here, and says what
// stays. Gateways leave nothing: all that Istio gives them has a counterpart.
func (c *Cluster) planAdoption(ctx context.Context, p *Plan) error {
	m := p.Manifest
	if m.Mesh == "" {
		return c.adoptionNotes(ctx, p)
	}
	mine := map[Ref]bool{}
	for _, o := range m.Objects() {
		mine[ref(o).canonical()] = true
	}
	for _, k := range kinds {
		switch k.kind {
		case "CustomResourceDefinition", "Namespace", "Secret", "DaemonSet":
			continue
		}
		objs, err := c.others(ctx, k.apiVersion, k.kind, m.Namespace)
		if err != nil {
			return err
		}
		for i := range objs {
			r := Ref{k.apiVersion, k.kind, objs[i].GetNamespace(), objs[i].GetName()}
			if !mine[r] && leftover(&objs[i], m.Namespace, m.Revision) {
				p.Leftover = append(p.Leftover, r)
			}
		}
	}
	return c.adoptionNotes(ctx, p)
}

// leftover tells whether an object of Istio's has nothing to do when its control plane of a
// revision has gone.
func leftover(o *unstructured.Unstructured, namespace, revision string) bool {
	l := o.GetLabels()
	if rev := l[revLabel]; rev != "" && rev != first(revision, DefaultRevision) {
		return false
	}
	switch o.GetKind() {
	case "ValidatingWebhookConfiguration": // nobody would answer it, and every change of users' objects would fail
		return servedBy(o, namespace, "istiod"+suffix(revision))
	case "MutatingWebhookConfiguration": // the users' own tags go on working
		return servedBy(o, namespace, "istiod"+suffix(revision)) && l[tagLabel] == first(revision, DefaultRevision)
	}
	switch l[istioComponent] {
	case "Pilot", "Base":
		return true
	case "":
		return (l["app"] == "istiod" || l["app"] == "istio-reader") && l["release"] != "" && strings.HasSuffix(o.GetName(), suffix(revision)+"-"+namespace)
	}
	return false
}

// servedBy tells whether all webhooks of a configuration are a Service's.
func servedBy(o *unstructured.Unstructured, namespace, service string) bool {
	hooks, _, _ := unstructured.NestedSlice(o.Object, "webhooks")
	for _, h := range hooks {
		m, _ := h.(map[string]any)
		ns, _, _ := unstructured.NestedString(m, "clientConfig", "service", "namespace")
		name, _, _ := unstructured.NestedString(m, "clientConfig", "service", "name")
		if ns != namespace || name != service {
			return false
		}
	}
	return len(hooks) > 0
}

// adoptionNotes says what of the cluster stays in use.
func (c *Cluster) adoptionNotes(ctx context.Context, p *Plan) error {
	for _, r := range p.Adopted {
		if r.Kind != "Service" {
			continue
		}
		svc, err := c.Kube.CoreV1().Services(r.Namespace).Get(ctx, r.Name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("reading what is taken over: %w", err)
		}
		if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			for _, in := range svc.Status.LoadBalancer.Ingress {
				p.Notes = append(p.Notes, fmt.Sprintf("%s keeps its address %s", r, first(in.IP, in.Hostname)))
			}
		}
	}
	if err := c.helmNotes(ctx, p); err != nil || p.Manifest.Mesh == "" {
		return err
	}
	ns := p.Manifest.Namespace
	secrets, err := c.Kube.CoreV1().Secrets(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("reading what is taken over: %w", err)
	}
	var remote []string
	signer := ""
	for _, s := range secrets.Items {
		switch {
		case s.Name == "cacerts", s.Name == "istio-ca-secret" && signer == "":
			signer = s.Name
		case s.Labels["istio/multiCluster"] == "true":
			remote = append(remote, s.Name)
		}
	}
	if signer != "" {
		p.Notes = append(p.Notes, fmt.Sprintf("Secret %s/%s signs as before", ns, signer))
	}
	if len(remote) > 0 {
		p.Notes = append(p.Notes, fmt.Sprintf("%d remote secrets stay: %s", len(remote), strings.Join(remote, ", ")))
	}
	n, err := c.istioSidecars(ctx)
	if err != nil {
		return err
	}
	if n > 0 {
		p.Notes = append(p.Notes, fmt.Sprintf("%d pods keep Istio's sidecar, which is served from here, until they are restarted", n))
	}
	return nil
}

// release is a release of Helm's, by the annotations that Helm gives its objects.
type release struct{ namespace, name string }

// helmNotes names the releases of Helm's that what is taken over is of. What is taken over loses
// Helm's marks, but Helm goes by its own record: an upgrade would write its objects again, and an
// uninstall would remove Carrick's. Afterwards only releases of the names that Istio's documents
// give them are known.
func (c *Cluster) helmNotes(ctx context.Context, p *Plan) error {
	ns := p.Manifest.Namespace
	objects := map[release]int{{ns, "istiod" + suffix(p.Manifest.Revision)}: 0, {ns, "istio-base"}: 0}
	for _, r := range slices.Concat(p.Adopted, p.Leftover) {
		live, err := c.get(ctx, r)
		if err != nil {
			return err
		}
		if live == nil {
			continue
		}
		if a := live.GetAnnotations(); a[helmOwner[0]] != "" {
			objects[release{a[helmOwner[1]], a[helmOwner[0]]}]++
		}
	}
	order := func(x, y release) int { return strings.Compare(x.namespace+"/"+x.name, y.namespace+"/"+y.name) }
	for _, r := range slices.SortedFunc(maps.Keys(objects), order) {
		selector := "owner=helm,name=" + r.name
		records, err := c.Kube.CoreV1().Secrets(r.namespace).List(ctx, metav1.ListOptions{LabelSelector: selector, Limit: 1})
		if err != nil {
			return fmt.Errorf("looking for Helm's record of release %s/%s: %w", r.namespace, r.name, err)
		}
		if len(records.Items) == 0 {
			continue
		}
		owned := ""
		if n := objects[r]; n > 0 {
			owned = fmt.Sprintf(" with %d of these objects", n)
		}
		p.Notes = append(p.Notes, fmt.Sprintf("Helm keeps a record of release %s%s; an upgrade or uninstall of it would undo this, so let Helm forget it: kubectl -n %s delete secret -l %s", r.name, owned, r.namespace, selector))
	}
	return nil
}

// helmOwner is what Helm marks the objects of a release with, beside the label that Carrick sets, too.
var helmOwner = []string{"meta.helm.sh/release-name", "meta.helm.sh/release-namespace"}

// disown takes Helm's marks off an object.
func (c *Cluster) disown(ctx context.Context, r Ref) error {
	live, err := c.get(ctx, r)
	if err != nil || live == nil {
		return err
	}
	marks := map[string]any{}
	for _, k := range helmOwner {
		if _, ok := live.GetAnnotations()[k]; ok {
			marks[k] = nil
		}
	}
	if len(marks) == 0 {
		return nil
	}
	return c.patchMetadata(ctx, r, map[string]any{"annotations": marks})
}

// patchMetadata changes the metadata of an object that is being taken over.
func (c *Cluster) patchMetadata(ctx context.Context, r Ref, metadata map[string]any) error {
	patch, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return fmt.Errorf("encoding the metadata of %s: %w", r, err)
	}
	ri, err := c.resource(r)
	if err != nil {
		return err
	}
	if _, err := ri.Patch(ctx, r.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: Manager}); err != nil {
		return fmt.Errorf("taking over %s: %w", r, err)
	}
	return nil
}

// others returns the objects of a kind, in the namespace if the kind has them there, that
// Carrick did not make; none of a kind that the server does not know.
func (c *Cluster) others(ctx context.Context, apiVersion, kind, namespace string) ([]unstructured.Unstructured, error) {
	r, err := c.resource(Ref{apiVersion, kind, namespace, ""})
	if err != nil {
		return nil, err
	}
	var all []unstructured.Unstructured
	opts := metav1.ListOptions{LabelSelector: ManagedBy + "!=carrick", Limit: 500}
	for {
		l, err := r.List(ctx, opts)
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("looking for what Istio leaves: %w", err)
		}
		all = append(all, l.Items...)
		if opts.Continue = l.GetContinue(); opts.Continue == "" {
			return all, nil
		}
	}
}
