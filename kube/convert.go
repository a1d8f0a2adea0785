package kube

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/carrick-mesh/carrick/mesh"
)

// Labels and annotations that are read.
const (
	exportToAnnotation     = "networking.istio.io/exportTo"
	nodeSelectorAnnotation = "traffic.istio.io/nodeSelector"
	distributionAnnotation = "networking.istio.io/traffic-distribution"
	networkLabel           = "topology.istio.io/network"
	templateHash           = "pod-template-hash"
)

// service returns the mesh's form and the host names among its addresses, which are yet to be
// resolved.
func service(cluster string, s *corev1.Service) (*mesh.Service, []string) {
	m := &mesh.Service{
		Cluster: cluster, Namespace: s.Namespace, Name: s.Name,
		Labels: s.Labels, Selector: s.Spec.Selector, Created: s.CreationTimestamp.Time,
		Type: mesh.ServiceType(s.Spec.Type), ExternalName: s.Spec.ExternalName,
	}
	for _, ns := range strings.Split(s.Annotations[exportToAnnotation], ",") {
		if ns = strings.TrimSpace(ns); ns != "" {
			m.ExportTo = append(m.ExportTo, ns)
		}
	}
	if text, ok := s.Annotations[nodeSelectorAnnotation]; ok && json.Unmarshal([]byte(cmp.Or(text, "{}")), &m.NodeSelector) != nil {
		m.NodeSelector = nil // as without: it has no addresses, which the mesh tells of its network
	}
	m.NodeLocal = s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	m.Distribution = mesh.ParseDistribution(s.Annotations[distributionAnnotation])
	if d := s.Spec.TrafficDistribution; d != nil {
		m.Distribution = cmp.Or(mesh.ParseDistribution(*d), m.Distribution)
	}
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 && s.Spec.ClusterIP != "" {
		ips = []string{s.Spec.ClusterIP}
	}
	for _, ip := range ips {
		if ip == corev1.ClusterIPNone {
			m.Headless = true
		} else if ip != "" {
			m.ClusterIPs = append(m.ClusterIPs, ip)
		}
	}
	var names []string
	for _, in := range s.Status.LoadBalancer.Ingress {
		switch {
		case isIP(in.IP):
			m.Addresses = append(m.Addresses, in.IP)
		case in.Hostname != "":
			names = append(names, in.Hostname)
		}
	}
	for _, ip := range s.Spec.ExternalIPs {
		if isIP(ip) {
			m.Addresses = append(m.Addresses, ip)
		}
	}
	for _, p := range s.Spec.Ports {
		x := mesh.ServicePort{Name: p.Name, Number: uint16(p.Port), Transport: string(p.Protocol), NodePort: uint16(p.NodePort)}
		if p.AppProtocol != nil {
			x.AppProtocol = *p.AppProtocol
		}
		if p.TargetPort.Type == intstr.String {
			x.TargetName = p.TargetPort.StrVal
		} else {
			x.TargetPort = uint16(p.TargetPort.IntVal)
		}
		m.Ports = append(m.Ports, x)
	}
	return m, names
}

func isIP(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// slice returns nil for slices that are none of a Service's, or of names.
func slice(cluster string, s *discoveryv1.EndpointSlice) *mesh.EndpointSlice {
	svc := s.Labels[discoveryv1.LabelServiceName]
	if svc == "" || s.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	m := &mesh.EndpointSlice{Cluster: cluster, Namespace: s.Namespace, Name: s.Name, Service: svc}
	for _, p := range s.Ports {
		if p.Port == nil || p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
			continue
		}
		x := mesh.SlicePort{Number: uint16(*p.Port)}
		if p.Name != nil {
			x.Name = *p.Name
		}
		m.Ports = append(m.Ports, x)
	}
	for _, e := range s.Endpoints {
		x := mesh.SliceEndpoint{Addresses: e.Addresses, Ready: true}
		if e.Conditions.Ready != nil {
			x.Ready = *e.Conditions.Ready
		}
		x.Serving = x.Ready
		if e.Conditions.Serving != nil {
			x.Serving = *e.Conditions.Serving
		}
		if e.Conditions.Terminating != nil {
			x.Terminating = *e.Conditions.Terminating
		}
		if t := e.TargetRef; t != nil && t.Kind == "Pod" && (t.Namespace == "" || t.Namespace == s.Namespace) {
			x.Pod = t.Name
		}
		if e.NodeName != nil {
			x.Node = *e.NodeName
		}
		if e.Zone != nil {
			x.Zone = *e.Zone
		}
		if e.Hostname != nil {
			x.Hostname = *e.Hostname
		}
		m.Endpoints = append(m.Endpoints, x)
	}
	return m
}

// pod returns nil for a Pod that has no IP yet or is over.
func pod(cluster string, p *corev1.Pod) *mesh.Pod {
	if p.Status.PodIP == "" || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil
	}
	m := &mesh.Pod{
		Cluster: cluster, Namespace: p.Namespace, Name: p.Name, Labels: p.Labels,
		ServiceAccount: p.Spec.ServiceAccountName, Node: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork,
	}
	for _, ip := range p.Status.PodIPs {
		m.IPs = append(m.IPs, ip.IP)
	}
	if len(m.IPs) == 0 {
		m.IPs = []string{p.Status.PodIP}
	}
	m.Workload, m.WorkloadKind = workload(p)
	ports := func(cs []corev1.Container) {
		for _, c := range cs {
			for _, x := range c.Ports {
				m.Ports = append(m.Ports, mesh.PodPort{Name: x.Name, Number: uint16(x.ContainerPort), Transport: string(x.Protocol)})
			}
		}
	}
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			ports([]corev1.Container{c})
		}
	}
	ports(p.Spec.Containers)
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			m.Ready = c.Status == corev1.ConditionTrue
		}
	}
	return m
}

// cronSuffix is what a CronJob appends to the names of its Jobs: minutes since the epoch.
var cronSuffix = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// workload returns the controller that the user wrote.
func workload(p *corev1.Pod) (name, kind string) {
	o := metav1.GetControllerOf(p)
	if o == nil {
		return "", ""
	}
	switch o.Kind {
	case "ReplicaSet":
		if n, ok := strings.CutSuffix(o.Name, "-"+p.Labels[templateHash]); ok && p.Labels[templateHash] != "" {
			return n, "Deployment"
		}
	case "ReplicationController":
		if n := p.Labels["deploymentconfig"]; n != "" {
			return n, "DeploymentConfig"
		}
	case "Job":
		if m := cronSuffix.FindStringSubmatch(o.Name); m != nil {
			return m[1], "CronJob"
		}
	}
	return o.Name, o.Kind
}

func node(cluster string, n *corev1.Node) *mesh.Node {
	m := &mesh.Node{Cluster: cluster, Name: n.Name, Locality: mesh.LocalityOf(n.Labels), Labels: n.Labels}
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} { // the better one last
		i := slices.IndexFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Type == kind && isIP(a.Address) })
		if i >= 0 {
			m.Address = n.Status.Addresses[i].Address
		}
	}
	return m
}

func namespace(cluster string, n *metav1.PartialObjectMetadata) *mesh.Namespace {
	return &mesh.Namespace{
		Cluster: cluster, Name: n.Name, Labels: n.Labels, Distribution: mesh.ParseDistribution(n.Annotations[distributionAnnotation]),
	}
}

// credential returns nil for a Secret that holds no TLS material, or that is the CA's own or an
// account's: no gateway may be given those by naming them. Both layouts that Istio reads: tls.crt,
// tls.key, ca.crt, ca.crl, and cert, key, cacert, crl.
func credential(cluster string, s *corev1.Secret) *mesh.Credential {
	if s.Name == "cacerts" || s.Name == "istio-ca-secret" || s.Type != corev1.SecretTypeTLS && s.Type != corev1.SecretTypeOpaque && s.Type != "" {
		return nil
	}
	first := func(keys ...string) []byte {
		for _, k := range keys {
			if len(s.Data[k]) > 0 {
				return s.Data[k]
			}
		}
		return nil
	}
	m := &mesh.Credential{Cluster: cluster, Namespace: s.Namespace, Name: s.Name,
		Cert: first(corev1.TLSCertKey, "cert"), PrivateKey: first(corev1.TLSPrivateKeyKey, "key"), CA: first("ca.crt", "cacert"), CRL: first("ca.crl", "crl")}
	if (len(m.Cert) == 0 || len(m.PrivateKey) == 0) && len(m.CA) == 0 {
		return nil
	}
	return m
}
