// Package inject turns a Pod into the same Pod with a proxy: a pure function, the admission
// webhook around it, and the same for manifests offline. It knows Pods and Istio's labels,
// annotations and values; it knows no cluster, and whether a namespace asks for injection is
// for the webhook's selectors to say.
package inject
