package install

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/carrick-mesh/carrick/schema/access"
)

// proxyUser is the user and group of everything that Carrick runs.
const proxyUser = 1337

// istiod renders the control plane, and returns the MeshConfig beside its objects.
func istiod(c *Config) ([]*unstructured.Unstructured, string, error) {
	comp := c.spec.Components.Pilot
	name := "istiod" + suffix(c.Revision)
	labels := map[string]string{"app": "istiod", "istio": "pilot", revLabel: first(c.Revision, DefaultRevision), "operator.istio.io/component": "Pilot"}
	if suffix(c.Revision) != "" {
		labels["istio"] = "istiod" // the Service of the default revision selects istio=pilot
	}
	mesh, config, err := istiodConfig(c, labels)
	if err != nil {
		return nil, "", err
	}
	deploy, err := istiodDeployment(c, comp, name, labels)
	if err != nil {
		return nil, "", err
	}
	clusterName := "istiod-clusterrole" + suffix(c.Revision) + "-" + c.Namespace
	typed := []runtime.Object{
		serviceAccount(c, name, "pilot", labels),
		clusterRole(clusterName, "pilot", access.ControlPlane(suffix(c.Revision), c.Namespace)),
		clusterRoleBinding(clusterName, c.Namespace, name, "pilot"),
		role(name, c.Namespace, "pilot", access.ControlPlaneNamespace(suffix(c.Revision))),
		roleBinding(name, c.Namespace, "pilot", rbacv1.Subject{Kind: "ServiceAccount", Name: name, Namespace: c.Namespace}),
	}
	typed = append(typed, config...)
	svc, err := istiodService(c, comp, name, labels)
	if err != nil {
		return nil, "", err
	}
	typed = append(typed, svc, deploy)
	if c.vals.Global.DefaultPodDisruptionBudget.Enabled || comp.K8s.PodDisruptionBudget != nil {
		typed = append(typed, budget(name, c.Namespace, "pilot", labels, deploy.Spec.Selector, comp.K8s.PodDisruptionBudget))
	}
	v := c.vals.Pilot
	if v.AutoscaleMin == nil && (comp.K8s.HPASpec == nil || comp.K8s.HPASpec.MinReplicas == nil) {
		v.AutoscaleMin = ptr.To(c.leastReplicas())
	}
	h, err := autoscaler(meta(name, c.Namespace, "pilot", labels),
		scaling{comp.K8s.HPASpec, v.AutoscaleEnabled, v.AutoscaleMin, v.AutoscaleMax}, "spec.components.pilot.k8s.hpaSpec")
	if err != nil {
		return nil, "", err
	}
	if h != nil {
		deploy.Spec.Replicas = nil
		typed = append(typed, h)
	}
	hookLabels := maps.Clone(labels)
	hookLabels["app"] = "sidecar-injector" // by which istioctl finds it
	typed = append(typed, injectorWebhook(webhookConfig{
		name: injectorName(c.Revision), service: name, namespace: c.Namespace, selects: first(c.Revision, DefaultRevision),
		byDefault: c.vals.SidecarInjectorWebhook.EnableNamespacesByDefault, meta: meta("", "", "pilot", hookLabels),
	}), validator(validatorName(c.Revision, c.Namespace), c.Revision, c.Namespace, meta("", "", "pilot", labels)))
	if suffix(c.Revision) == "" {
		typed = append(typed, validator(DefaultValidator, "", c.Namespace, meta("", "", "pilot", labels)))
	}
	objs, err := objects(typed...)
	if err != nil {
		return nil, "", err
	}
	return objs, mesh, patch(objs, comp.K8s.Overlays, "spec.components.pilot")
}

// istiodConfig renders the ConfigMaps that the control plane reads.
func istiodConfig(c *Config, labels map[string]string) (string, []runtime.Object, error) {
	mv, err := c.meshValues()
	if err != nil {
		return "", nil, err
	}
	mesh, err := yaml.Marshal(mv)
	if err != nil {
		return "", nil, fmt.Errorf("encoding the MeshConfig: %w", err)
	}
	networks := map[string]any{}
	maps.Copy(networks, c.vals.Global.MeshNetworks)
	mn, err := yaml.Marshal(map[string]any{"networks": networks})
	if err != nil {
		return "", nil, fmt.Errorf("encoding values.global.meshNetworks: %w", err)
	}
	values, err := json.MarshalIndent(c.injectorValues(), "", "  ")
	if err != nil {
		return "", nil, fmt.Errorf("encoding the injector's values: %w", err)
	}
	web := c.vals.SidecarInjectorWebhook
	annotations := web.InjectedAnnotations
	if annotations == nil {
		annotations = map[string]string{}
	}
	defaults := web.DefaultTemplates
	if len(defaults) == 0 {
		defaults = []string{"sidecar"}
	}
	content := map[string]any{
		"policy":               "enabled",
		"defaultTemplates":     defaults,
		"alwaysInjectSelector": append([]any{}, web.AlwaysInjectSelector...),
		"neverInjectSelector":  append([]any{}, web.NeverInjectSelector...),
		"injectedAnnotations":  annotations,
	}
	if len(web.Templates) > 0 {
		content["templates"] = web.Templates
	}
	if len(web.Aliases) > 0 {
		content["aliases"] = web.Aliases
	}
	config, err := yaml.Marshal(content)
	if err != nil {
		return "", nil, fmt.Errorf("encoding the injector's config: %w", err)
	}
	cm := func(name string, data map[string]string) runtime.Object {
		return &corev1.ConfigMap{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
			ObjectMeta: meta(name+suffix(c.Revision), c.Namespace, "pilot", labels),
			Data:       data,
		}
	}
	return string(mesh), []runtime.Object{
		cm("istio", map[string]string{"mesh": string(mesh), "meshNetworks": string(mn)}),
		cm("istio-sidecar-injector", map[string]string{"values": string(values), "config": string(config)}),
	}, nil
}

func istiodService(c *Config, comp *Component, name string, labels map[string]string) (*corev1.Service, error) {
	port := func(name string, port, target int32) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: port, TargetPort: intstr.FromInt32(target), Protocol: corev1.ProtocolTCP}
	}
	svc := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: meta(name, c.Namespace, "pilot", labels),
		Spec: corev1.ServiceSpec{
			Selector: istiodSelector(c),
			Ports: []corev1.ServicePort{
				port("grpc-xds", 15010, 15010),
				port("https-dns", 15012, 15012),
				port("https-webhook", 443, 15017),
				port("http-monitoring", 15014, 15014),
			},
		},
	}
	svc.Annotations = comp.K8s.ServiceAnnotations
	if err := overlayService(svc, comp.K8s.Service); err != nil {
		return nil, fmt.Errorf("spec.components.pilot.%w", err)
	}
	return svc, nil
}

func istiodSelector(c *Config) map[string]string {
	s := map[string]string{"app": "istiod"}
	if suffix(c.Revision) == "" {
		s["istio"] = "pilot"
	} else {
		s[revLabel] = c.Revision
	}
	return s
}

func istiodDeployment(c *Config, comp *Component, name string, labels map[string]string) (*appsv1.Deployment, error) {
	img, err := c.image("carrick", comp, "spec.components.pilot")
	if err != nil {
		return nil, err
	}
	p := c.vals.Pilot
	env := []corev1.EnvVar{
		{Name: "REVISION", Value: first(c.Revision, DefaultRevision)},
		{Name: "CLUSTER_ID", Value: c.Cluster},
		{Name: "PILOT_CERT_PROVIDER", Value: "istiod"},
		fieldEnv("POD_NAME", "metadata.name"),
		fieldEnv("POD_NAMESPACE", "metadata.namespace"),
		fieldEnv("SERVICE_ACCOUNT", "spec.serviceAccountName"),
	}
	env = mergeEnv(env, mapEnv(p.Env), comp.K8s.Env)
	args := []string{"discovery", "--domain", c.Domain()}
	if l := c.vals.Global.Logging.Level; l != "" {
		args = append(args, "--log_output_level="+l)
	}
	replicas := comp.K8s.ReplicaCount
	if replicas == nil {
		replicas = first(p.ReplicaCount, ptr.To(c.leastReplicas()))
	}
	podLabels := maps.Clone(labels)
	podLabels["sidecar.istio.io/inject"] = "false"
	d := &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: meta(name, c.Namespace, "pilot", labels),
		Spec: appsv1.DeploymentSpec{
			Replicas: replicas,
			Selector: &metav1.LabelSelector{MatchLabels: istiodSelector(c)},
			Strategy: rolling("100%", "25%"),
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{
					Labels:      podLabels,
					Annotations: map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": "15014", "sidecar.istio.io/inject": "false"},
				},
				Spec: corev1.PodSpec{
					ServiceAccountName: name,
					SecurityContext:    &corev1.PodSecurityContext{FSGroup: ptr.To[int64](proxyUser)},
					Containers: []corev1.Container{{
						Name:            "discovery",
						Image:           img,
						ImagePullPolicy: c.pullPolicy(comp.K8s.ImagePullPolicy),
						Command:         []string{"/usr/local/bin/carrick"},
						Args:            args,
						Ports: []corev1.ContainerPort{
							{Name: "http-debug", ContainerPort: 8080, Protocol: corev1.ProtocolTCP},
							{Name: "grpc-xds", ContainerPort: 15010, Protocol: corev1.ProtocolTCP},
							{Name: "https-dns", ContainerPort: 15012, Protocol: corev1.ProtocolTCP},
							{Name: "http-monitoring", ContainerPort: 15014, Protocol: corev1.ProtocolTCP},
							{Name: "https-webhook", ContainerPort: 15017, Protocol: corev1.ProtocolTCP},
						},
						Env: env,
						ReadinessProbe: &corev1.Probe{
							ProbeHandler:     corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromInt32(8080)}},
							PeriodSeconds:    1, // an installation waits for it
							TimeoutSeconds:   5,
							FailureThreshold: 6,
						},
						SecurityContext: locked(),
						VolumeMounts:    []corev1.VolumeMount{{Name: "cacerts", MountPath: "/etc/cacerts", ReadOnly: true}},
					}},
					Volumes: []corev1.Volume{{Name: "cacerts", VolumeSource: corev1.VolumeSource{
						Secret: &corev1.SecretVolumeSource{SecretName: "cacerts", Optional: ptr.To(true)},
					}}},
				},
			},
		},
	}
	pod := &d.Spec.Template
	maps.Copy(pod.Annotations, p.PodAnnotations)
	if p.Resources != nil {
		pod.Spec.Containers[0].Resources = *p.Resources
	}
	pod.Spec.NodeSelector, pod.Spec.Tolerations = p.NodeSelector, p.Tolerations
	if c.nodes >= 2 {
		pod.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: corev1.LabelHostname,
			WhenUnsatisfiable: corev1.ScheduleAnyway, LabelSelector: &metav1.LabelSelector{MatchLabels: istiodSelector(c)}}}
	}
	c.overlayPod(d, comp.K8s)
	return d, nil
}

// overlayPod applies what a file says of a component's pods.
func (c *Config) overlayPod(d *appsv1.Deployment, k K8s) {
	pod := &d.Spec.Template.Spec
	if k.Resources != nil {
		pod.Containers[0].Resources = *k.Resources
	}
	if k.ReadinessProbe != nil {
		pod.Containers[0].ReadinessProbe = k.ReadinessProbe
	}
	if k.SecurityContext != nil {
		pod.SecurityContext = k.SecurityContext
	}
	if k.Strategy != nil {
		d.Spec.Strategy = *k.Strategy
	}
	if k.NodeSelector != nil {
		pod.NodeSelector = k.NodeSelector
	}
	pod.Affinity = k.Affinity
	pod.PriorityClassName = first(k.PriorityClassName, c.vals.Global.PriorityClassName)
	pod.Tolerations = slices.Concat(pod.Tolerations, k.Tolerations)
	pod.Volumes = slices.Concat(pod.Volumes, k.Volumes)
	pod.Containers[0].VolumeMounts = slices.Concat(pod.Containers[0].VolumeMounts, k.VolumeMounts)
	if len(k.PodAnnotations) > 0 {
		maps.Copy(d.Spec.Template.Annotations, k.PodAnnotations)
	}
	for _, s := range c.vals.Global.ImagePullSecrets {
		pod.ImagePullSecrets = append(pod.ImagePullSecrets, corev1.LocalObjectReference{Name: s})
	}
}

func (c *Config) pullPolicy(own corev1.PullPolicy) corev1.PullPolicy {
	return first(own, c.vals.Global.ImagePullPolicy, corev1.PullIfNotPresent)
}

// locked is the security context of a container that needs no privilege.
func locked() *corev1.SecurityContext {
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: ptr.To(false),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		ReadOnlyRootFilesystem:   ptr.To(true),
		RunAsUser:                ptr.To[int64](proxyUser),
		RunAsGroup:               ptr.To[int64](proxyUser),
		RunAsNonRoot:             ptr.To(true),
	}
}

func rolling(surge, unavailable string) appsv1.DeploymentStrategy {
	s, u := intstr.FromString(surge), intstr.FromString(unavailable)
	return appsv1.DeploymentStrategy{
		Type:          appsv1.RollingUpdateDeploymentStrategyType,
		RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &s, MaxUnavailable: &u},
	}
}

func fieldEnv(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
}

func mapEnv(m map[string]any) (env []corev1.EnvVar) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		env = append(env, corev1.EnvVar{Name: k, Value: fmt.Sprint(m[k])})
	}
	return env
}

// mergeEnv joins lists; a later entry of the same name replaces an earlier one.
func mergeEnv(lists ...[]corev1.EnvVar) (out []corev1.EnvVar) {
	for _, e := range slices.Concat(lists...) {
		if i := slices.IndexFunc(out, func(x corev1.EnvVar) bool { return x.Name == e.Name }); i >= 0 {
			out[i] = e
		} else {
			out = append(out, e)
		}
	}
	return out
}

// overlayService lays what a file says of a Service on what is rendered: a field that it sets replaces the
// rendered one as a whole, all others stay.
func overlayService(svc *corev1.Service, over *corev1.ServiceSpec) error {
	if over == nil {
		return nil
	}
	b, err := json.Marshal(over)
	if err != nil {
		return fmt.Errorf("k8s.service: %w", err)
	}
	set := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &set); err != nil {
		return fmt.Errorf("k8s.service: %w", err)
	}
	// Unmarshal would merge these with what they hold.
	if set["ports"] != nil {
		svc.Spec.Ports = nil
	}
	if set["selector"] != nil {
		svc.Spec.Selector = nil
	}
	if err := json.Unmarshal(b, &svc.Spec); err != nil {
		return fmt.Errorf("k8s.service: %w", err)
	}
	for i := range svc.Spec.Ports {
		svc.Spec.Ports[i].Protocol = first(svc.Spec.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	return nil
}

func budget(name, namespace, component string, labels map[string]string, sel *metav1.LabelSelector, spec *policyv1.PodDisruptionBudgetSpec) *policyv1.PodDisruptionBudget {
	b := &policyv1.PodDisruptionBudget{
		TypeMeta:   metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"},
		ObjectMeta: meta(name, namespace, component, labels),
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: ptr.To(intstr.FromInt32(1)), Selector: sel},
	}
	if spec != nil {
		b.Spec = *spec
		if b.Spec.Selector == nil {
			b.Spec.Selector = sel
		}
	}
	return b
}

func quantities(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
}
