package schema

// MeshConfigWithoutEffect returns the fields of MeshConfig that nothing here reads, by their names in
// YAML, and what is missing without each, as a sentence's end.
func MeshConfigWithoutEffect() map[string]string {
	const ports = "proxies listen on ports 15001 and 15006"
	return map[string]string{
		"proxyListenPort":             ports,
		"proxyInboundListenPort":      ports,
		"proxyHttpPort":               "there is no HTTP proxy for applications to name",
		"hboneIdleTimeout":            "there is no HBONE",
		"ingressService":              "Ingresses are not served",
		"ingressSelector":             "Ingresses are not served",
		"enableTracing":               "no spans are made",
		"enableEnvoyAccessLogService": "access logs are written to files alone",
		"disableEnvoyListenerLog":     "connections that no filter chain takes are logged where accessLogFile is set",
		"configSources":               "users' objects are read from the API server alone",
		"serviceScopeConfigs":         "there is no ambient mode",
		"verifyCertificateAtClient":   "a DestinationRule says by itself whether the server's certificate is verified",
		"ca":                          "certificates are signed by the control plane",
		"extensionProviders":          "nothing that needs a provider runs: external authorization, tracing, other access logs",
		"defaultProviders":            "nothing that needs a provider runs: tracing, metrics, other access logs",
		"discoverySelectors":          "proxies learn of all namespaces",
		"serviceEntryVisibility":      "there are no ServiceEntries",
	}
}
