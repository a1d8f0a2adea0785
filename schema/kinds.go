package schema

import (
	"google.golang.org/protobuf/proto"
	extensions "istio.io/api/extensions/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	networkingbeta "istio.io/api/networking/v1beta1"
	security "istio.io/api/security/v1beta1"
	telemetry "istio.io/api/telemetry/v1alpha1"
)

// Kinds returns all kinds: Istio's, then Gateway API's, MCS' and Kubernetes' own.
func Kinds() []Kind {
	all := append(trafficKinds(), policyKinds()...)
	return append(append(all, gatewayKinds()...), otherKinds()...)
}

func trafficKinds() []Kind {
	versions := []string{"v1", "v1beta1", "v1alpha3"}
	return []Kind{
		{Group: Networking, Kind: "Gateway", Plural: "gateways", Versions: versions, Status: Istio, Implemented: true,
			Spec: func() proto.Message { return &networking.Gateway{} }},
		{Group: Networking, Kind: "VirtualService", Plural: "virtualservices", Versions: versions, Status: Istio, Implemented: true,
			Spec: func() proto.Message { return &networking.VirtualService{} }},
		{Group: Networking, Kind: "DestinationRule", Plural: "destinationrules", Versions: versions, Status: Istio, Implemented: true,
			Spec: func() proto.Message { return &networking.DestinationRule{} }},
		{Group: Networking, Kind: "ServiceEntry", Plural: "serviceentries", Versions: versions, Status: Istio,
			Spec:    func() proto.Message { return &networking.ServiceEntry{} },
			Without: "its hosts are unknown to the mesh, so they are called as any other host outside of it, or blocked"},
		{Group: Networking, Kind: "Sidecar", Plural: "sidecars", Versions: versions, Status: Istio,
			Spec:    func() proto.Message { return &networking.Sidecar{} },
			Without: "workloads may call all hosts that are visible to them, and others as the mesh's outboundTrafficPolicy says",
			Guards:  closesEgress},
		{Group: Networking, Kind: "WorkloadEntry", Plural: "workloadentries", Versions: versions, Status: Istio,
			Spec:    func() proto.Message { return &networking.WorkloadEntry{} },
			Without: "no request is sent to its workload"},
		{Group: Networking, Kind: "WorkloadGroup", Plural: "workloadgroups", Versions: versions, Status: Istio,
			Spec:    func() proto.Message { return &networking.WorkloadGroup{} },
			Without: "workloads outside of Kubernetes cannot join the mesh"},
		{Group: Networking, Kind: "EnvoyFilter", Plural: "envoyfilters", Versions: []string{"v1alpha3"}, Status: Istio,
			Spec:    func() proto.Message { return &networking.EnvoyFilter{} },
			Without: "proxies run without what it adds or changes, such as rate limits, authorization and other limits",
			Guards:  usersFilter},
		{Group: Networking, Kind: "ProxyConfig", Plural: "proxyconfigs", Versions: []string{"v1beta1"}, Status: Istio,
			Spec:    func() proto.Message { return &networkingbeta.ProxyConfig{} },
			Without: "proxies are set up by the mesh's configuration and the annotations of their pods alone"},
	}
}

func policyKinds() []Kind {
	versions := []string{"v1", "v1beta1"}
	return []Kind{
		{Group: Security, Kind: "PeerAuthentication", Plural: "peerauthentications", Versions: versions, Status: Istio, Implemented: true,
			Spec: func() proto.Message { return &security.PeerAuthentication{} }, Guards: always},
		{Group: Security, Kind: "AuthorizationPolicy", Plural: "authorizationpolicies", Versions: versions, Status: Istio,
			Spec:    func() proto.Message { return &security.AuthorizationPolicy{} },
			Without: "requests and connections that it forbids are let through",
			Guards:  enforced},
		{Group: Security, Kind: "RequestAuthentication", Plural: "requestauthentications", Versions: versions, Status: Istio,
			Spec:    func() proto.Message { return &security.RequestAuthentication{} },
			Without: "tokens are not verified, and requests with invalid ones are let through",
			Guards:  always},
		{Group: Telemetry, Kind: "Telemetry", Plural: "telemetries", Versions: []string{"v1", "v1alpha1"}, Status: Istio,
			Spec:    func() proto.Message { return &telemetry.Telemetry{} },
			Without: "access logs, metrics and traces are as the mesh's configuration says"},
		{Group: Extensions, Kind: "WasmPlugin", Plural: "wasmplugins", Versions: []string{"v1alpha1"}, Status: Istio,
			Spec:    func() proto.Message { return &extensions.WasmPlugin{} },
			Without: "its plugin does not run, and what the plugin would refuse is let through",
			Guards:  always},
		{Group: Extensions, Kind: "TrafficExtension", Plural: "trafficextensions", Versions: []string{"v1alpha1"}, Status: Istio,
			Spec:    func() proto.Message { return &extensions.TrafficExtension{} },
			Without: "its extension does not run, and what the extension would refuse is let through",
			Guards:  always},
	}
}

func gatewayKinds() []Kind {
	core := []string{"v1", "v1beta1", "v1alpha2"}
	const noRoute = "no gateway and no sidecar routes by it"
	return []Kind{
		{Group: GatewayAPI, Kind: "GatewayClass", Plural: "gatewayclasses", Versions: core, ClusterScoped: true, Status: GatewayClass,
			Without: "no gateway of its class is served"},
		{Group: GatewayAPI, Kind: "Gateway", Plural: "gateways", Versions: core, Status: Gateway,
			Without: "no proxy is made for it, and none serves it"},
		{Group: GatewayAPI, Kind: "ListenerSet", Plural: "listenersets", Versions: []string{"v1"}, Status: Gateway,
			Without: "no proxy serves its listeners"},
		{Group: Experimental, Kind: "XListenerSet", Plural: "xlistenersets", Versions: []string{"v1alpha1"}, Status: Gateway,
			Without: "no proxy serves its listeners"},
		{Group: GatewayAPI, Kind: "HTTPRoute", Plural: "httproutes", Versions: core, Status: Route, Without: noRoute},
		{Group: GatewayAPI, Kind: "GRPCRoute", Plural: "grpcroutes", Versions: []string{"v1", "v1alpha2"}, Status: Route, Without: noRoute},
		{Group: GatewayAPI, Kind: "TCPRoute", Plural: "tcproutes", Versions: []string{"v1", "v1alpha2"}, Status: Route, Without: noRoute},
		{Group: GatewayAPI, Kind: "TLSRoute", Plural: "tlsroutes", Versions: []string{"v1", "v1alpha3", "v1alpha2"}, Status: Route, Without: noRoute},
		{Group: GatewayAPI, Kind: "UDPRoute", Plural: "udproutes", Versions: []string{"v1", "v1alpha2"}, Status: Route, Without: noRoute},
		{Group: GatewayAPI, Kind: "ReferenceGrant", Plural: "referencegrants", Versions: []string{"v1", "v1beta1", "v1alpha2"},
			Without: "nothing refers to other namespaces by it"},
		{Group: GatewayAPI, Kind: "BackendTLSPolicy", Plural: "backendtlspolicies", Versions: []string{"v1", "v1alpha3", "v1alpha2"}, Status: Policy,
			Without: "gateways do not encrypt what they send to its Services"},
		{Group: Experimental, Kind: "XBackendTrafficPolicy", Plural: "xbackendtrafficpolicies", Versions: []string{"v1alpha1"}, Status: Policy,
			Without: "retries and sessions of its Services are as the mesh's configuration says"},
	}
}

func otherKinds() []Kind {
	return []Kind{
		{Group: MultiCluster, Kind: "ServiceExport", Plural: "serviceexports", Versions: []string{"v1alpha1", "v1beta1"}, Status: Export,
			Without: "Services of one name and namespace are joined in all clusters, exported or not"},
		{Group: MultiCluster, Kind: "ServiceImport", Plural: "serviceimports", Versions: []string{"v1alpha1", "v1beta1"},
			Without: "names below clusterset.local are unknown to the mesh"},
		{Group: Kubernetes, Kind: "Ingress", Plural: "ingresses", Versions: []string{"v1"},
			Without: "no gateway routes by it"},
		{Group: Kubernetes, Kind: "IngressClass", Plural: "ingressclasses", Versions: []string{"v1"}, ClusterScoped: true,
			Without: "no Ingress of its class is served"},
	}
}
