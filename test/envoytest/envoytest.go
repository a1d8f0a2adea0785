// Package envoytest finds and starts genuine Envoy for the tests that compare with it. It knows
// where `make envoy` puts the program and nothing of what a test asks of it.
package envoytest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
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

// Start runs Envoy on a bootstrap (YAML, whose admin listens on port 0) until the test ends, and
// returns the admin's address, HOST:PORT; more are further arguments. Envoy's log is shown if the test
// fails.
func Start(t testing.TB, bootstrap string, more ...string) string {
	t.Helper()
	program, dir := Program(t), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "envoy.yaml"), []byte(bootstrap), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	args := []string{"-c", "envoy.yaml", "--concurrency", "1", "--use-dynamic-base-id", "--admin-address-path", "admin", "-l", "warning"}
	cmd := exec.Command(program, append(args, more...)...)
	cmd.Dir, cmd.Stderr = dir, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("Envoy: %s", b)
		}
	})
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if b, err := os.ReadFile(filepath.Join(dir, "admin")); err == nil && len(b) > 0 {
			return strings.TrimSpace(string(b))
		}
	}
	t.Fatal("Envoy's admin does not come up")
	return ""
}
