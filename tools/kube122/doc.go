// Package kube122 holds the rendered manifests against the API of Kubernetes 1.22, the oldest that
// is supported: every kind, version and field must be known there. It is a module of its own, for
// its dependencies are those of 1.22. It knows nothing of what the objects do.
package kube122
