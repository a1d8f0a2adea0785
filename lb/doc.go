// Package lb is the load balancer: a controller that gives Services their addresses and a speaker on each
// node that answers for them. Which address a Service gets is decided in pool, and how a node answers on
// its network in announce; lb knows the API server, the leases of the speakers, and whether MetalLB itself
// serves the cluster.
package lb
