package compile

import (
	"strconv"
	"strings"
)

// clusterName is the name of a cluster of endpoints of a Service: outbound|5000|v1|helloworld.sample.svc.cluster.local.
func clusterName(port uint16, subset, host string) string {
	return "outbound|" + strconv.Itoa(int(port)) + "|" + subset + "|" + host
}

// sniName is the same as a server name, which gateways between networks choose by, and the name of
// their clusters: outbound_.5000_.v1_.helloworld.sample.svc.cluster.local.
func sniName(port uint16, subset, host string) string {
	return "outbound_." + strconv.Itoa(int(port)) + "_." + subset + "_." + host
}

func inboundName(port uint16) string { return "inbound|" + strconv.Itoa(int(port)) + "||" }

// Names of clusters that every proxy has.
const (
	blackHole          = "BlackHoleCluster"
	passthrough        = "PassthroughCluster"
	inboundPassthrough = "InboundPassthroughCluster"
)

// statOf is what a pattern for statistics can name.
type statOf struct {
	host, service, namespace string
	port, target             uint16
	portName, subset         string
}

// statName returns what statistics call a cluster, by a pattern of MeshConfig; "" without one.
func statName(pattern string, of statOf) string {
	if pattern == "" {
		return ""
	}
	return strings.NewReplacer(
		"%SERVICE%", of.service+"."+of.namespace, "%SERVICE_NAME%", of.service, "%SERVICE_FQDN%", of.host, "%SUBSET_NAME%", of.subset,
		"%TARGET_PORT%", strconv.Itoa(int(of.target)), "%SERVICE_PORT%", strconv.Itoa(int(of.port)), "%SERVICE_PORT_NAME%", of.portName,
	).Replace(pattern) + ";" // by which proxies tell where the name ends
}
