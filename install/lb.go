package install

import (
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/carrick-mesh/carrick/schema/access"
)

// Names of the load balancer's install.
const (
	LBNamespace = "metallb-system"
	LBName      = "lb"
)

// LBConfig says how to install the load balancer.
type LBConfig struct {
	Hub        string // default DefaultHub
	Tag        string
	PullPolicy string // default IfNotPresent
	Pull       []string
}

// LoadBalancer renders the load balancer: a controller that gives Services their addresses, and
// on each node a speaker that answers for them.
func LoadBalancer(lc LBConfig) (*Manifest, error) {
	crds, err := crdObjects("lb")
	if err != nil {
		return nil, err
	}
	ns := namespace(LBNamespace, "")
	// Speakers use the host's network, which the stricter pod security levels forbid.
	ns.Labels = map[string]string{
		"pod-security.kubernetes.io/enforce": "privileged",
		"pod-security.kubernetes.io/audit":   "privileged",
		"pod-security.kubernetes.io/warn":    "privileged",
	}
	c := &Config{Namespace: LBNamespace, vals: &values{}}
	c.vals.Global.ImagePullSecrets = lc.Pull
	image := first(lc.Hub, DefaultHub) + "/carrick:" + lc.Tag
	policy := first(corev1.PullPolicy(lc.PullPolicy), corev1.PullIfNotPresent)
	subject := func(name string) rbacv1.Subject {
		return rbacv1.Subject{Kind: "ServiceAccount", Name: name, Namespace: LBNamespace}
	}
	typed := []runtime.Object{
		serviceAccount(c, "controller", "lb", nil),
		serviceAccount(c, "speaker", "lb", nil),
		clusterRole("metallb-system:controller", "lb", access.Controller()),
		clusterRoleBinding("metallb-system:controller", LBNamespace, "controller", "lb"),
		clusterRole("metallb-system:speaker", "lb", access.Speaker()),
		clusterRoleBinding("metallb-system:speaker", LBNamespace, "speaker", "lb"),
		role("lb-controller", LBNamespace, "lb", access.ControllerNamespace()),
		roleBinding("lb-controller", LBNamespace, "lb", subject("controller")),
		role("lb-speaker", LBNamespace, "lb", access.SpeakerNamespace()),
		roleBinding("lb-speaker", LBNamespace, "lb", subject("speaker")),
		lbController(c, image, policy),
		lbSpeaker(c, image, policy),
	}
	first, err := objects(ns)
	if err != nil {
		return nil, err
	}
	rest, err := objects(typed...)
	if err != nil {
		return nil, fmt.Errorf("rendering the load balancer: %w", err)
	}
	m := &Manifest{Name: LBName, Namespace: LBNamespace, Version: lc.Tag, Parts: []Part{{Name: "Load balancer", Objects: slices.Concat(first, crds, rest)}}}
	m.label()
	return m, nil
}

func lbLabels(component string) map[string]string {
	return map[string]string{"app": "metallb", "component": component}
}

func lbController(c *Config, image string, policy corev1.PullPolicy) *appsv1.Deployment {
	labels := lbLabels("controller")
	return &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: meta("controller", LBNamespace, "lb", labels),
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To[int32](1),
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: map[string]string{"sidecar.istio.io/inject": "false"}},
				Spec: corev1.PodSpec{
					ServiceAccountName: "controller",
					ImagePullSecrets:   pullSecrets(c),
					Tolerations: []corev1.Toleration{
						{Key: "node-role.kubernetes.io/control-plane", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
						{Key: "node-role.kubernetes.io/master", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
					},
					Containers: []corev1.Container{{
						Name:            "controller",
						Image:           image,
						ImagePullPolicy: policy,
						Command:         []string{"/usr/local/bin/carrick"},
						Args:            []string{"lb-controller"},
						Env:             lbEnv(),
						Resources:       corev1.ResourceRequirements{Requests: quantities("10m", "32Mi")},
						SecurityContext: locked(),
					}},
				},
			},
		},
	}
}

func lbSpeaker(c *Config, image string, policy corev1.PullPolicy) *appsv1.DaemonSet {
	labels := lbLabels("speaker")
	sc := &corev1.SecurityContext{
		// NET_RAW comes into the effective set only for root, unless the image's file has it.
		RunAsUser:                ptr.To[int64](0),
		AllowPrivilegeEscalation: ptr.To(false),
		ReadOnlyRootFilesystem:   ptr.To(true),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_RAW"}},
	}
	return &appsv1.DaemonSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "DaemonSet"},
		ObjectMeta: meta("speaker", LBNamespace, "lb", labels),
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: map[string]string{"sidecar.istio.io/inject": "false"}},
				Spec: corev1.PodSpec{
					ServiceAccountName:            "speaker",
					HostNetwork:                   true,
					DNSPolicy:                     corev1.DNSClusterFirstWithHostNet,
					TerminationGracePeriodSeconds: ptr.To[int64](5),
					ImagePullSecrets:              pullSecrets(c),
					// Every node may be the one that answers, also a busy or a control-plane one.
					Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
					Containers: []corev1.Container{{
						Name:            "speaker",
						Image:           image,
						ImagePullPolicy: policy,
						Command:         []string{"/usr/local/bin/carrick"},
						Args:            []string{"speaker"},
						Env:             append(lbEnv(), fieldEnv("NODE_NAME", "spec.nodeName"), fieldEnv("HOST_IP", "status.hostIP")),
						Resources:       corev1.ResourceRequirements{Requests: quantities("10m", "32Mi")},
						SecurityContext: sc,
					}},
				},
			},
		},
	}
}

func lbEnv() []corev1.EnvVar {
	return []corev1.EnvVar{fieldEnv("POD_NAME", "metadata.name"), fieldEnv("POD_NAMESPACE", "metadata.namespace")}
}

func pullSecrets(c *Config) (refs []corev1.LocalObjectReference) {
	for _, s := range c.vals.Global.ImagePullSecrets {
		refs = append(refs, corev1.LocalObjectReference{Name: s})
	}
	return refs
}
