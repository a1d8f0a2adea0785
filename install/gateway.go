package install

import (
	"fmt"
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/carrick-mesh/carrick/schema/access"
)

// gateway renders one gateway: its pods get their proxy from the injector's template "gateway",
// so that they follow the control plane's version and settings.
func gateway(c *Config, g Gateway, v gatewayValues, field string) ([]*unstructured.Unstructured, error) {
	own := *c
	own.Namespace = first(g.Namespace, c.Namespace)
	labels := map[string]string{"app": g.Name, "istio": "ingressgateway", revLabel: first(c.Revision, DefaultRevision), "operator.istio.io/component": "IngressGateways"}
	if isEgress(field) {
		labels["istio"], labels["operator.istio.io/component"] = "egressgateway", "EgressGateways"
	}
	maps.Copy(labels, g.Label)
	selector := map[string]string{"app": labels["app"], "istio": labels["istio"]}
	if len(g.Label) > 0 {
		selector = maps.Clone(g.Label)
		// The network is not who the gateway is: it may be given or changed later, and a Deployment's
		// selector may not.
		delete(selector, "topology.istio.io/network")
		if len(selector) == 0 {
			selector["app"] = labels["app"]
		}
	}
	account := g.Name + "-service-account"
	component := "ingress-gateways"
	if isEgress(field) {
		component = "egress-gateways"
	}
	deploy := gatewayDeployment(&own, g, v, labels, selector, account, component)
	typed := []runtime.Object{
		serviceAccount(&own, account, component, labels),
	}
	if own.Namespace != c.Namespace {
		// Certificates of TLS servers (credentialName) are Secrets of the gateway's namespace. The control
		// plane hands them out; the gateway, which faces strangers, reads none.
		typed = append([]runtime.Object{namespace(own.Namespace, "")}, append(typed,
			role(g.Name+"-sds", own.Namespace, component, access.GatewayNamespace()),
			roleBinding(g.Name+"-sds", own.Namespace, component,
				rbacv1.Subject{Kind: "ServiceAccount", Name: "istiod" + suffix(c.Revision), Namespace: c.Namespace}))...)
	}
	svc, err := gatewayService(&own, g, v, labels, selector, component, field)
	if err != nil {
		return nil, err
	}
	typed = append(typed, svc, deploy)
	if c.vals.Global.DefaultPodDisruptionBudget.Enabled || g.K8s.PodDisruptionBudget != nil {
		typed = append(typed, budget(g.Name, own.Namespace, component, labels, deploy.Spec.Selector, g.K8s.PodDisruptionBudget))
	}
	h, err := autoscaler(meta(g.Name, own.Namespace, component, labels),
		scaling{g.K8s.HPASpec, v.AutoscaleEnabled, v.AutoscaleMin, v.AutoscaleMax}, field+".k8s.hpaSpec")
	if err != nil {
		return nil, err
	}
	if h != nil {
		deploy.Spec.Replicas = nil
		typed = append(typed, h)
	}
	objs, err := objects(typed...)
	if err != nil {
		return nil, err
	}
	return objs, patch(objs, g.K8s.Overlays, field)
}

func isEgress(field string) bool { return len(field) > 22 && field[:22] == "spec.components.egress" }

func gatewayService(c *Config, g Gateway, v gatewayValues, labels, selector map[string]string, component, field string) (*corev1.Service, error) {
	svc := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: meta(g.Name, c.Namespace, component, labels),
		Spec: corev1.ServiceSpec{
			Type:                     first(v.Type, corev1.ServiceTypeLoadBalancer),
			Selector:                 selector,
			Ports:                    v.Ports,
			LoadBalancerIP:           v.LoadBalancerIP,
			LoadBalancerSourceRanges: v.LoadBalancerSourceRanges,
			ExternalTrafficPolicy:    v.ExternalTrafficPolicy,
		},
	}
	if isEgress(field) {
		svc.Spec.Type = first(v.Type, corev1.ServiceTypeClusterIP)
	}
	svc.Annotations = maps.Clone(v.ServiceAnnotations)
	if len(g.K8s.ServiceAnnotations) > 0 {
		if svc.Annotations == nil {
			svc.Annotations = map[string]string{}
		}
		maps.Copy(svc.Annotations, g.K8s.ServiceAnnotations)
	}
	if err := overlayService(svc, g.K8s.Service); err != nil {
		return nil, fmt.Errorf("%s.%w", field, err)
	}
	if len(svc.Spec.Ports) == 0 {
		port := func(name string, port, target int32) corev1.ServicePort {
			return corev1.ServicePort{Name: name, Port: port, TargetPort: intstr.FromInt32(target), Protocol: corev1.ProtocolTCP}
		}
		svc.Spec.Ports = []corev1.ServicePort{port("http2", 80, 8080), port("https", 443, 8443)}
		if !isEgress(field) {
			svc.Spec.Ports = append([]corev1.ServicePort{port("status-port", 15021, 15021)}, svc.Spec.Ports...)
		}
	}
	for i, p := range svc.Spec.Ports {
		if p.Port == 0 {
			return nil, fmt.Errorf("%s.k8s.service.ports[%d].port: is missing", field, i)
		}
		if p.TargetPort == (intstr.IntOrString{}) {
			svc.Spec.Ports[i].TargetPort = intstr.FromInt32(p.Port)
		}
	}
	return svc, nil
}

func gatewayDeployment(c *Config, g Gateway, v gatewayValues, labels, selector map[string]string, account, component string) *appsv1.Deployment {
	podLabels := maps.Clone(labels)
	podLabels["sidecar.istio.io/inject"] = "true"
	podLabels["service.istio.io/canonical-name"] = g.Name
	podLabels["service.istio.io/canonical-revision"] = "latest"
	if suffix(c.Revision) == "" {
		delete(podLabels, revLabel) // so that the webhooks of the default revision see the pod
	}
	if c.Network != "" && podLabels["topology.istio.io/network"] == "" {
		podLabels["topology.istio.io/network"] = c.Network
	}
	replicas := g.K8s.ReplicaCount
	if replicas == nil {
		replicas = ptr.To[int32](1)
	}
	d := &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: meta(g.Name, c.Namespace, component, labels),
		Spec: appsv1.DeploymentSpec{
			Replicas: replicas,
			Selector: &metav1.LabelSelector{MatchLabels: selector},
			// A gateway is replaced only by a ready one: its address never stands empty.
			Strategy: rolling("100%", "0%"),
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{
					Labels: podLabels,
					Annotations: map[string]string{
						"inject.istio.io/templates": first(v.InjectionTemplate, "gateway"),
						VersionAnnotation:           c.tag, // so that a new version makes new pods
						"prometheus.io/scrape":      "true",
						"prometheus.io/port":        "15020",
						"prometheus.io/path":        "/stats/prometheus",
					},
				},
				Spec: corev1.PodSpec{
					ServiceAccountName:            account,
					AutomountServiceAccountToken:  ptr.To(false), // the proxy's own token is for the control plane alone
					TerminationGracePeriodSeconds: ptr.To[int64](30),
					SecurityContext: &corev1.PodSecurityContext{
						RunAsUser: ptr.To[int64](proxyUser), RunAsGroup: ptr.To[int64](proxyUser), RunAsNonRoot: ptr.To(true), FSGroup: ptr.To[int64](proxyUser),
					},
					Containers: []corev1.Container{{
						Name:            "istio-proxy",
						Image:           "auto", // the injector's
						ImagePullPolicy: c.pullPolicy(g.K8s.ImagePullPolicy),
						Env:             mergeEnv(mapEnv(v.Env), g.K8s.Env),
						Ports:           []corev1.ContainerPort{{Name: "http-envoy-prom", ContainerPort: 15090, Protocol: corev1.ProtocolTCP}},
						SecurityContext: locked(),
					}},
				},
			},
		},
	}
	pod := &d.Spec.Template
	maps.Copy(pod.Annotations, v.PodAnnotations)
	if v.Resources != nil {
		pod.Spec.Containers[0].Resources = *v.Resources
	}
	pod.Spec.NodeSelector, pod.Spec.Tolerations = v.NodeSelector, v.Tolerations
	c.overlayPod(d, g.K8s)
	return d
}
