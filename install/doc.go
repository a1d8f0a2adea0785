// Package install renders, applies, upgrades and removes a control plane, gateways or the load
// balancer, and keeps an inventory of all it wrote. It knows IstioOperator files and Kubernetes
// objects; it knows nothing of what the installed programs do.
package install
