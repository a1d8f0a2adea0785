package compile

import "strconv"

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
