package proxy

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// engines runs a test with this proxy and, if $ENVOY or PATH has it, with genuine Envoy: what the
// test expects is what Envoy does.
func engines(t *testing.T, test func(t *testing.T, start func(yaml string))) {
	t.Run("carrick", func(t *testing.T) {
		test(t, func(yaml string) { start(t, yaml, nil) })
	})
	t.Run("envoy", func(t *testing.T) {
		path := os.Getenv("ENVOY")
		if path == "" {
			path = "envoy"
		}
		bin, err := exec.LookPath(path)
		if err != nil {
			t.Skip("no envoy: name one in ENVOY")
		}
		test(t, func(yaml string) { startEnvoy(t, bin, yaml) })
	})
}

var listenPort = regexp.MustCompile(`name: [lt][0-9]+\n    address: \{socket_address: \{address: 127.0.0.1, port_value: ([0-9]+)`)

func startEnvoy(t *testing.T, bin, yaml string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	// Access logs are flushed after every line's second; Envoy's default is ten.
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(bin, "-c", file, "--concurrency", "2", "--disable-hot-restart", "--log-level", "warning", "--file-flush-interval-msec", "50")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("envoy: %s", log.String())
		}
	})
	for _, m := range listenPort.FindAllStringSubmatch(yaml, -1) {
		eventually(t, "envoy listens on "+m[1], func() bool {
			c, err := net.Dial("tcp", "127.0.0.1:"+m[1])
			if err == nil {
				c.Close()
			}
			return err == nil
		})
	}
}
