// Package accesslog turns Envoy access-log formats into lines: it knows the format language and
// how lines reach a file. It does not know connections or requests; whoever serves them fills an Entry.
package accesslog

// Format is a compiled format: a sequence of literals and operators. Immutable, safe for
// concurrent use.
type Format struct {
	ops  []op
	json bool // append as the members of a JSON object, see ParseJSON
}
