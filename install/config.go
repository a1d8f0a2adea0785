package install

import (
	"embed"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/carrick-mesh/carrick/schema"
	"sigs.k8s.io/yaml"
)

// Defaults of an IstioOperator file.
const (
	DefaultHub       = "docker.io/carrickmesh"
	DefaultNamespace = "istio-system"
	// ControlPlane is the name of the install that a file without metadata.name describes.
	ControlPlane = "installed-state"
	// DefaultRevision is the name of the control plane whose objects' names end in no revision.
	DefaultRevision = "default"
	// DefaultCluster is the id of a cluster that is given none, as in Istio.
	DefaultCluster = "Kubernetes"
)

//go:embed profiles/*.yaml
var profiles embed.FS

// Profiles lists the built-in profiles.
var Profiles = []string{"default", "demo", "minimal", "empty"}

// Config is what to install: profile, files and --set, merged in this order and checked.
type Config struct {
	Name      string // the install's: ControlPlane or a file's metadata.name
	Namespace string
	Profile   string
	Revision  string
	Network   string
	MeshID    string
	Cluster   string          // values.global.multiCluster.clusterName, or DefaultCluster
	Ignored   []schema.Unused // fields of the spec that are set and have no effect here

	spec    Spec
	vals    *values
	file    map[string]any // the user's files, merged
	sets    []string       // the user's --set arguments
	version string         // the default tag
	hub     string
	tag     string
	full    map[string]any // values as merged
	nodes   int            // that pods can run on; 0 if it is not known
}

// OnNodes says how many nodes the control plane can run on. Where there are two or more it has two
// replicas, unless files say otherwise: while none answers, pods can neither be made nor learn of others.
func (c *Config) OnNodes(n int) { c.nodes = n }

// leastReplicas is how many replicas the control plane has if nothing says so.
func (c *Config) leastReplicas() int32 {
	if c.nodes >= 2 {
		return 2
	}
	return 1
}

// Domain returns the DNS domain of the cluster's Services.
func (c *Config) Domain() string {
	if d := c.vals.Global.Proxy.ClusterDomain; d != "" {
		return d
	}
	return "cluster.local"
}

// Resolve merges the files, documents as Parse returns them, in order, and the --set arguments
// over the profile that they name (default if none does). version is the default tag.
func Resolve(files []map[string]any, sets []string, version string) (*Config, error) {
	user := map[string]any{"apiVersion": "install.istio.io/v1alpha1", "kind": "IstioOperator"}
	for _, f := range files {
		user = overlay(user, f)
	}
	spec, _ := user["spec"].(map[string]any)
	profile, _ := spec["profile"].(string)
	for _, s := range sets {
		if p, ok := strings.CutPrefix(strings.TrimPrefix(s, "spec."), "profile="); ok {
			profile = p
		}
	}
	profile = first(profile, "default")
	merged, err := readProfile(profile)
	if err != nil {
		return nil, err
	}
	merged = overlay(merged, user)
	spec, _ = merged["spec"].(map[string]any)
	for _, s := range sets {
		if spec, err = Set(spec, s); err != nil {
			return nil, err
		}
	}
	merged["spec"] = spec
	op, err := decode(merged)
	if err != nil {
		return nil, err
	}
	c, err := newConfig(op, profile, version)
	if err != nil {
		return nil, err
	}
	c.file, c.sets, c.version = user, sets, version
	return c, nil
}

// Over returns the config that the same files and arguments give when they are merged over
// another document; the config itself if that is nil.
func (c *Config) Over(under map[string]any) (*Config, error) {
	if under == nil {
		return c, nil
	}
	return Resolve([]map[string]any{under, c.file}, c.sets, c.version)
}

func readProfile(name string) (map[string]any, error) {
	b, err := profiles.ReadFile("profiles/" + name + ".yaml")
	if err != nil || !slices.Contains(Profiles, name) {
		return nil, fmt.Errorf("spec.profile: %q is not one of %s", name, strings.Join(Profiles, ", "))
	}
	var base map[string]any
	if err := yaml.Unmarshal(b, &base); err != nil {
		return nil, fmt.Errorf("reading profile %s: %w", name, err)
	}
	return base, nil
}

func newConfig(op *Operator, profile, version string) (*Config, error) {
	full := overlay(op.Spec.Values, op.Spec.UnvalidatedValues)
	v, ignored, err := decodeValues(full)
	if err != nil {
		return nil, err
	}
	c := &Config{
		Name:      op.Metadata.Name,
		Namespace: first(op.Spec.Namespace, op.Metadata.Namespace, v.Global.IstioNamespace, DefaultNamespace),
		Profile:   profile,
		Revision:  first(op.Spec.Revision, v.Revision),
		Network:   v.Global.Network,
		MeshID:    v.Global.MeshID,
		Cluster:   first(v.Global.MultiCluster.ClusterName, DefaultCluster),
		Ignored:   ignored,
		spec:      op.Spec,
		vals:      v,
		full:      full,
	}
	c.Name = first(c.Name, ControlPlaneName(c.Revision))
	if len(op.Spec.AddonComponents) > 0 {
		c.Ignored = append(c.Ignored, schema.Unused{Path: "addonComponents", Why: "install addons by their own manifests"})
	}
	c.Ignored = append(c.Ignored, c.unused()...)
	if op.Spec.Components.CNI.enabled() {
		return nil, fmt.Errorf("spec.components.cni.enabled: Carrick has no CNI plugin; pods are redirected by their init container; set it to false")
	}
	if op.Spec.Components.IstiodRemote.enabled() {
		return nil, fmt.Errorf("spec.components.istiodRemote.enabled: a cluster without a control plane of its own is not supported; set it to false")
	}
	specTag, err := tag("spec.tag", op.Spec.Tag)
	if err != nil {
		return nil, err
	}
	valueTag, err := tag("spec.values.global.tag", v.Global.Tag)
	if err != nil {
		return nil, err
	}
	c.hub = strings.TrimSuffix(first(op.Spec.Hub, v.Global.Hub, DefaultHub), "/")
	c.tag = first(specTag, valueTag, version)
	for field, name := range map[string]string{"spec.values.global.network": c.Network, "spec.values.global.multiCluster.clusterName": c.Cluster, "spec.revision": c.Revision} {
		if strings.ContainsAny(name, " /\\|,:") || len(name) > 63 {
			return nil, fmt.Errorf("%s: %q is not a name (letters, digits, - and ., at most 63)", field, name)
		}
	}
	return c, nil
}

// image returns the reference of an image of a component that may have a hub and tag of its own.
func (c *Config) image(name string, comp *Component, field string) (string, error) {
	t, err := tag(field+".tag", comp.Tag)
	if err != nil {
		return "", err
	}
	return first(comp.Hub, c.hub) + "/" + name + ":" + first(t, c.tag), nil
}

// Components names what will be installed, for people: "Istio core", "Istiod", "Ingress gateways".
func (c *Config) Components() (names []string) {
	cs := c.spec.Components
	if cs.Base.enabled() {
		names = append(names, "Istio core")
	}
	if cs.Pilot.enabled() {
		names = append(names, "Istiod")
	}
	on := func(g Gateway) bool { return g.enabled() }
	if slices.ContainsFunc(cs.IngressGateways, on) {
		names = append(names, "Ingress gateways")
	}
	if slices.ContainsFunc(cs.EgressGateways, on) {
		names = append(names, "Egress gateways")
	}
	return names
}

// HasControlPlane reports whether the install holds a control plane, not only gateways.
func (c *Config) HasControlPlane() bool { return c.spec.Components.Pilot.enabled() }

// meshValues is the MeshConfig to install, as YAML values.
func (c *Config) meshValues() (map[string]any, error) {
	proxy := map[string]any{
		"discoveryAddress": "istiod" + suffix(c.Revision) + "." + c.Namespace + ".svc:15012",
		"proxyMetadata":    map[string]any{},
		"tracing":          map[string]any{"zipkin": map[string]any{"address": "zipkin." + c.Namespace + ":9411"}},
	}
	if c.MeshID != "" {
		proxy["meshId"] = c.MeshID
	}
	m := map[string]any{
		"defaultConfig":         proxy,
		"enablePrometheusMerge": true,
		"rootNamespace":         c.Namespace,
		"trustDomain":           first(c.vals.Global.TrustDomain, "cluster.local"),
	}
	m = overlay(overlay(m, c.vals.MeshConfig), c.spec.MeshConfig)
	if _, err := meshConfig(m); err != nil {
		return nil, fmt.Errorf("spec.meshConfig: %w", err)
	}
	return m, nil
}

// injectorValues is key values of ConfigMap istio-sidecar-injector.
func (c *Config) injectorValues() map[string]any {
	v := map[string]any{"global": map[string]any{
		"hub":             c.hub,
		"tag":             c.tag,
		"imagePullPolicy": string(c.pullPolicy("")),
		"istioNamespace":  c.Namespace,
		"meshID":          c.MeshID,
		"network":         c.Network,
		"multiCluster":    map[string]any{"clusterName": c.Cluster},
		"proxy":           map[string]any{"image": "carrick", "engine": "carrick", "clusterDomain": "cluster.local", "logLevel": "warning"},
		"proxy_init":      map[string]any{"image": "carrick"},
	}, "revision": c.Revision,
		"sidecarInjectorWebhook": map[string]any{"enableNamespacesByDefault": c.vals.SidecarInjectorWebhook.EnableNamespacesByDefault}} // istioctl analyze ends without it
	user := maps.Clone(c.full)
	for _, k := range []string{"pilot", "gateways", "meshConfig"} {
		delete(user, k)
	}
	if g, ok := user["global"].(map[string]any); ok {
		g = maps.Clone(g)
		delete(g, "hub")
		delete(g, "tag")
		delete(g, "defaultPodDisruptionBudget")
		user["global"] = g
	}
	return overlay(v, user)
}

// ControlPlaneName returns the name of the install that is the control plane of a revision.
func ControlPlaneName(revision string) string { return ControlPlane + suffix(revision) }

// IsControlPlane reports whether an install's name is that of a control plane.
func IsControlPlane(install string) bool {
	return install == ControlPlane || strings.HasPrefix(install, ControlPlane+"-")
}

// suffix is what the names of a revision's objects end in; the default one's end in nothing.
func suffix(revision string) string {
	if revision == "" || revision == DefaultRevision {
		return ""
	}
	return "-" + revision
}

func first[T comparable](vs ...T) (zero T) {
	for _, v := range vs {
		if v != zero {
			return v
		}
	}
	return zero
}
