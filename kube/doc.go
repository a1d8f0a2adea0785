// Package kube turns one API server's watches into mesh events and remote secrets into clusters,
// and writes back what others decide: statuses, events, root ConfigMaps, caBundles, leases. It knows
// Kubernetes' and Istio's objects as API servers hold them, and decides nothing about the mesh.
package kube
