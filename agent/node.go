package agent

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"strconv"
	"strings"
)

// IstioVersion is what a proxy run by this agent says of itself to control planes that shape
// configuration by Istio's version: the one whose names and defaults Carrick serves. The suffix is
// for people; parsers of Istio versions stop before it.
const IstioVersion = "1.15.7-carrick"

// Pod is what is known of the pod that the proxy serves.
type Pod struct {
	Name           string
	Namespace      string
	ServiceAccount string
	TrustDomain    string       // default cluster.local
	IPs            []netip.Addr // the first is the one that identifies the proxy
	Domain         string       // DNS domain; default NAMESPACE.svc.cluster.local
	Labels         map[string]string
	Annotations    map[string]string
}

// Node is the identity and metadata of a proxy in xDS, in the form of envoy.config.core.v3.Node.
type Node struct {
	ID       string         // "sidecar~10.0.0.1~sleep-1.sample~sample.svc.cluster.local"
	Cluster  string         // "sleep.sample"
	Metadata map[string]any // JSON values
}

// node makes the Node that Istio's agent would, from the pod, the ISTIO_META_* variables (without
// that prefix) and the proxy's configuration. It is pure.
func node(router bool, pod Pod, meta map[string]string, cfg *ProxyConfig, p ports) Node {
	kind := "sidecar"
	if router {
		kind = "router"
	}
	domain := pod.Domain
	if domain == "" {
		domain = pod.Namespace + ".svc.cluster.local"
	}
	m := map[string]any{}
	for k, v := range cfg.ProxyMetadata {
		if name, ok := strings.CutPrefix(k, "ISTIO_META_"); ok {
			m[name] = v
		}
	}
	set := func(k string, v any) { m[k] = v }
	for k, v := range meta {
		set(k, v)
	}
	setDefault := func(k, v string) {
		if have, ok := m[k]; !ok || have == "" {
			m[k] = v
		}
	}
	set("NAME", pod.Name)
	set("NAMESPACE", pod.Namespace)
	set("SERVICE_ACCOUNT", pod.ServiceAccount)
	set("ISTIO_VERSION", IstioVersion)
	labels := map[string]string{} // never null
	maps.Copy(labels, pod.Labels)
	set("LABELS", labels)
	set("ANNOTATIONS", annotations(pod.Annotations))
	set("PROXY_CONFIG", cfg.raw)
	set("PILOT_SAN", []string{serverName(cfg.DiscoveryAddress)})
	set("ENVOY_STATUS_PORT", p.health)
	set("ENVOY_PROMETHEUS_PORT", p.prometheus)
	ips := make([]string, len(pod.IPs))
	for i, ip := range pod.IPs {
		ips[i] = ip.String()
	}
	set("INSTANCE_IPS", strings.Join(ips, ","))
	setDefault("CLUSTER_ID", "Kubernetes")
	setDefault("INTERCEPTION_MODE", "REDIRECT")
	if router {
		delete(m, "INTERCEPTION_MODE")
	}
	if r, ok := pod.Labels["istio.io/rev"]; ok {
		setDefault("ISTIO_REVISION", r)
	}
	if n, ok := pod.Labels["topology.istio.io/network"]; ok && n != "" {
		set("NETWORK", n)
	}
	return Node{
		ID:       strings.Join([]string{kind, ip(pod), pod.Name + "." + pod.Namespace, domain}, "~"),
		Cluster:  serviceCluster(pod, m, cfg),
		Metadata: m,
	}
}

func ip(pod Pod) string {
	if len(pod.IPs) == 0 {
		return ""
	}
	return pod.IPs[0].String()
}

// serviceCluster is what traces and Envoy's x-envoy-downstream-service-cluster call the workload.
func serviceCluster(pod Pod, m map[string]any, cfg *ProxyConfig) string {
	name := cfg.ServiceCluster
	if name != "" && name != "istio-proxy" {
		return name
	}
	if name = pod.Labels["app"]; name == "" {
		name, _ = m["WORKLOAD_NAME"].(string)
	}
	if name == "" {
		name = "istio-proxy"
	}
	return name + "." + pod.Namespace
}

// annotations leaves out what is long and of no use to a control plane.
func annotations(all map[string]string) map[string]string {
	m := map[string]string{}
	for k, v := range all {
		if k == "kubectl.kubernetes.io/last-applied-configuration" || len(v) > 4096 {
			continue
		}
		m[k] = v
	}
	return m
}

// json returns the node as the JSON of envoy.config.core.v3.Node.
func (n Node) json() (json.RawMessage, error) {
	b, err := json.Marshal(map[string]any{"id": n.ID, "cluster": n.Cluster, "metadata": n.Metadata})
	if err != nil {
		return nil, fmt.Errorf("encoding the node: %w", err)
	}
	return b, nil
}

// ParseDownwardAPI reads the file that Kubernetes writes for the labels or annotations of a pod:
// a line key="value" for each, the value quoted as in Go.
func ParseDownwardAPI(b []byte) (map[string]string, error) {
	m := map[string]string{}
	for i, line := range strings.Split(string(b), "\n") {
		if strings.TrimSpace(line) == "" {
			continue
		}
		k, v, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("line %d: no = in %q", i+1, line)
		}
		u, err := strconv.Unquote(v)
		if err != nil {
			return nil, fmt.Errorf("line %d: the value of %s is not quoted", i+1, k)
		}
		m[k] = u
	}
	return m, nil
}
