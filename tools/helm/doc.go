// Package helm renders the charts of `carrick manifest chart` with Helm's own engine, and holds what
// comes out to be what `carrick install` applies. It is a module of its own, so that Helm is a
// dependency of this test alone; Helm itself, for test/helm.sh, is its tool.
package helm
