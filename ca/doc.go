// Package ca signs workload certificates and looks after its own keys and roots: it knows
// CA material, validity, and how to go from one root to the next without breaking a
// connection. It knows nothing of Kubernetes: Secrets, the root ConfigMap, token review and
// the delivery of roots to proxies come through small interfaces.
package ca
