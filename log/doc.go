// Package log writes the log lines of both programs, in Istio's form, and keeps a level for each scope,
// which Istio's ControlZ can change while the program runs. It does not know what is logged.
package log
