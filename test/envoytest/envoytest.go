// Package envoytest finds genuine Envoy for the tests that compare with it. It knows where
// `make envoy` puts the program and nothing of what it does.
package envoytest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Program returns the path of Envoy's program: what CARRICK_ENVOY names, envoy of PATH, or what
// `make envoy` has fetched. It skips the test if there is none, and in short mode.
func Program(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("genuine Envoy is for the integration tests: not in short mode")
	}
	if p := os.Getenv("CARRICK_ENVOY"); p != "" {
		return p
	}
	if p, err := exec.LookPath("envoy"); err == nil {
		return p
	}
	if cache, err := os.UserCacheDir(); err == nil {
		if found, _ := filepath.Glob(filepath.Join(cache, "carrick", "envoy-*", "envoy")); len(found) > 0 {
			return found[len(found)-1]
		}
	}
	t.Skip("no Envoy here: `make envoy` fetches it, or name one in CARRICK_ENVOY")
	return ""
}
