// Package mesh is the model: what the clusters of a mesh hold, as immutable values in one
// Snapshot, and Apply, the only way from one Snapshot to the next. It knows how objects of several
// clusters and kinds belong together (services of one name, slices and pods, pods and networks,
// rules and hosts) and nothing of API servers, proxies or Envoy.
package mesh
