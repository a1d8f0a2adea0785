package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
)

// Manager is the field manager of all that is applied.
const Manager = "carrick"

// Cluster is the API server to install into.
type Cluster struct {
	Dynamic dynamic.Interface
	Kube    kubernetes.Interface
}

// Ref names an object.
type Ref struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
}

// String returns KIND NAMESPACE/NAME.
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// canonical returns the ref by which objects are compared: a HorizontalPodAutoscaler is one object,
// whatever version it was written in.
func (r Ref) canonical() Ref {
	if r.APIVersion == "autoscaling/v2" {
		r.APIVersion = "autoscaling/v1"
	}
	return r
}

func ref(o *unstructured.Unstructured) Ref {
	return Ref{o.GetAPIVersion(), o.GetKind(), o.GetNamespace(), o.GetName()}
}

// kinds lists every kind that is ever installed, in the order of removal: first what would keep
// others from being made or what routes to what goes, last what others need to end well.
var kinds = []struct {
	apiVersion, kind, resource string
	namespaced                 bool
}{
	{"admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", false},
	{"admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", false},
	{"autoscaling/v1", "HorizontalPodAutoscaler", "horizontalpodautoscalers", true},
	{"policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", true},
	{"apps/v1", "Deployment", "deployments", true},
	{"apps/v1", "DaemonSet", "daemonsets", true},
	{"v1", "Service", "services", true},
	{"v1", "ConfigMap", "configmaps", true},
	{"v1", "Secret", "secrets", true},
	{"rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings", true},
	{"rbac.authorization.k8s.io/v1", "Role", "roles", true},
	{"rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings", false},
	{"rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles", false},
	{"v1", "ServiceAccount", "serviceaccounts", true},
	{"apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", false},
	{"v1", "Namespace", "namespaces", false},
}

func kindIndex(apiVersion, kind string) int {
	apiVersion = Ref{APIVersion: apiVersion}.canonical().APIVersion
	for i, k := range kinds {
		if k.apiVersion == apiVersion && k.kind == kind {
			return i
		}
	}
	return -1
}

// resource returns the client for an object's kind and namespace.
func (c *Cluster) resource(r Ref) (dynamic.ResourceInterface, error) {
	i := kindIndex(r.APIVersion, r.Kind)
	if i < 0 {
		return nil, fmt.Errorf("%s: kind %s of %s is not one that is installed", r, r.Kind, r.APIVersion)
	}
	gv, err := schema.ParseGroupVersion(r.APIVersion)
	if err != nil {
		return nil, err
	}
	ri := c.Dynamic.Resource(gv.WithResource(kinds[i].resource))
	if kinds[i].namespaced {
		return ri.Namespace(r.Namespace), nil
	}
	return ri, nil
}

// get returns nil if there is no such object.
func (c *Cluster) get(ctx context.Context, r Ref) (*unstructured.Unstructured, error) {
	ri, err := c.resource(r)
	if err != nil {
		return nil, err
	}
	o, err := ri.Get(ctx, r.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", r, err)
	}
	return o, nil
}

// apply writes an object by server-side apply and returns what the server made of it. Fields that
// others set and we do not stay. CRDs are created or merged instead: servers before 1.25 refuse to
// apply fields that they do not know, and merging drops them.
func (c *Cluster) apply(ctx context.Context, o *unstructured.Unstructured, dryRun bool) (*unstructured.Unstructured, error) {
	r := ref(o)
	ri, err := c.resource(r)
	if err != nil {
		return nil, err
	}
	if err := c.keepPolicy(ctx, o); err != nil {
		return nil, err
	}
	var dry []string
	if dryRun {
		dry = []string{metav1.DryRunAll}
	}
	b, err := json.Marshal(o.Object)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", r, err)
	}
	var out *unstructured.Unstructured
	if r.Kind == "CustomResourceDefinition" {
		out, err = ri.Patch(ctx, r.Name, types.MergePatchType, b, metav1.PatchOptions{FieldManager: Manager, DryRun: dry})
		if apierrors.IsNotFound(err) {
			out, err = ri.Create(ctx, o, metav1.CreateOptions{FieldManager: Manager, DryRun: dry})
		}
	} else {
		force := true
		out, err = ri.Patch(ctx, r.Name, types.ApplyPatchType, b, metav1.PatchOptions{FieldManager: Manager, Force: &force, DryRun: dry})
	}
	if err != nil {
		return nil, fmt.Errorf("applying %s: %w", r, explain(err))
	}
	return out, nil
}

// explain adds to an API server's refusal what to do about it.
func explain(err error) error {
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w (use a kubeconfig user that may administer the cluster)", err)
	case apierrors.IsInvalid(err) && strings.Contains(err.Error(), "immutable"):
		return fmt.Errorf("%w (delete the object and run the command again)", err)
	}
	return err
}

// remove deletes an object if its label still says that owner installed it; "" for whoever did.
// It reports whether it was there to be deleted.
func (c *Cluster) remove(ctx context.Context, r Ref, owner string) (bool, error) {
	o, err := c.get(ctx, r)
	if err != nil || o == nil {
		return false, err
	}
	if o.GetLabels()[ManagedBy] != "carrick" || owner != "" && o.GetLabels()[InstallLabel] != owner {
		return false, nil
	}
	ri, err := c.resource(r)
	if err != nil {
		return false, err
	}
	uid := o.GetUID()
	background := metav1.DeletePropagationBackground
	err = ri.Delete(ctx, r.Name, metav1.DeleteOptions{PropagationPolicy: &background, Preconditions: &metav1.Preconditions{UID: &uid}})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("deleting %s: %w", r, err)
	}
	return true, nil
}

// State is what is stored of an install, in a ConfigMap of its namespace.
type State struct {
	Name      string
	Namespace string
	Version   string
	Operator  string   // the user's IstioOperator file, YAML
	Sets      []string // the user's --set arguments
	Inventory []Ref    // everything that was written
	Mesh      string   // the MeshConfig as it was rendered
	Previous  string   // the version before this one; "" if there was none
}

// stateLabel marks the ConfigMaps that hold a State.
const stateLabel = "carrick.dev/state"

func stateName(install string) string {
	if install == ControlPlane || strings.HasPrefix(install, ControlPlane+"-") {
		return install
	}
	return ControlPlane + "-" + install
}

// LoadState returns nil if nothing of that name is installed.
func (c *Cluster) LoadState(ctx context.Context, namespace, install string) (*State, error) {
	cm, err := c.Kube.CoreV1().ConfigMaps(namespace).Get(ctx, stateName(install), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading what is installed: %w", err)
	}
	return parseState(cm)
}

// States returns everything that is installed in the cluster.
func (c *Cluster) States(ctx context.Context) ([]*State, error) {
	cms, err := c.Kube.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{LabelSelector: stateLabel + "=true"})
	if err != nil {
		return nil, fmt.Errorf("reading what is installed: %w", err)
	}
	var all []*State
	var errs []error
	for i := range cms.Items {
		s, err := parseState(&cms.Items[i])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, s)
	}
	return all, errors.Join(errs...)
}

func parseState(cm *corev1.ConfigMap) (*State, error) {
	s := &State{Name: cm.Labels[InstallLabel], Namespace: cm.Namespace, Version: cm.Data["version"], Operator: cm.Data["operator"], Mesh: cm.Data["mesh"], Previous: cm.Data["previous"]}
	for key, v := range map[string]any{"inventory": &s.Inventory, "set": &s.Sets} {
		if cm.Data[key] == "" {
			continue
		}
		if err := json.Unmarshal([]byte(cm.Data[key]), v); err != nil {
			return nil, fmt.Errorf("ConfigMap %s/%s: data.%s is not what was written (%w); restore it, or delete the ConfigMap and install again", cm.Namespace, cm.Name, key, err)
		}
	}
	return s, nil
}

func (c *Cluster) saveState(ctx context.Context, s *State) error {
	inv, err := json.MarshalIndent(s.Inventory, "", " ")
	if err != nil {
		return err
	}
	sets, err := json.Marshal(s.Sets)
	if err != nil {
		return err
	}
	cm := &corev1.ConfigMap{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: stateName(s.Name), Namespace: s.Namespace, Labels: map[string]string{
			stateLabel: "true", ManagedBy: "carrick", InstallLabel: s.Name,
		}},
		Data: map[string]string{"version": s.Version, "operator": s.Operator, "set": string(sets), "inventory": string(inv), "mesh": s.Mesh, "previous": s.Previous},
	}
	o, err := object(cm)
	if err != nil {
		return err
	}
	if _, err := c.apply(ctx, o, false); err != nil {
		return fmt.Errorf("storing the inventory: %w", err)
	}
	return nil
}

// Config returns the settings that an install was made with. version is the default tag.
func (s *State) Config(version string) (*Config, error) {
	var files []map[string]any
	if s.Operator != "" {
		var err error
		if files, err = Parse("the stored IstioOperator", []byte(s.Operator)); err != nil {
			return nil, err
		}
	}
	return Resolve(files, s.Sets, version)
}
