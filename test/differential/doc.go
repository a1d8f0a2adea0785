// Package differential holds the built-in proxy to genuine Envoy: both get the same bootstrap and the
// same bytes, and the answers, what the upstream saw and the log lines are compared. It is all tests.
package differential
