package proxy

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/carrick-mesh/carrick/test/envoytest"
)

// engines runs a test with this proxy and, if it is there, with genuine Envoy: what the
// test expects is what Envoy does.
func engines(t *testing.T, test func(t *testing.T, start func(yaml string))) {
	t.Run("carrick", func(t *testing.T) {
		test(t, func(yaml string) { start(t, yaml, nil) })
	})
	t.Run("envoy", func(t *testing.T) {
		bin := envoytest.Program(t)
		test(t, func(yaml string) { startEnvoy(t, bin, yaml) })
	})
}

// secretFiles gives Envoy as files what Secrets would give.
func secretFiles(t testing.TB, yaml string, s Secrets) string {
	t.Helper()
	ts, ok := s.(*testSecrets)
	if !ok || ts == nil {
		return yaml
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	key, err := x509.MarshalPKCS8PrivateKey(ts.key.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	block := func(typ string, b []byte) string { return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: b})) }
	chain := write("chain.pem", block("CERTIFICATE", ts.key.Certificate[0]))
	keyFile := write("key.pem", block("PRIVATE KEY", key))
	roots := write("roots.pem", block("CERTIFICATE", ts.roots.Certificates[0].Raw))
	for name, secret := range map[string]string{
		"default": "tls_certificate: {certificate_chain: {filename: " + chain + "}, private_key: {filename: " + keyFile + "}}",
		"ROOTCA":  "validation_context: {trusted_ca: {filename: " + roots + "}}",
	} {
		f := write(name+".yaml", "resources:\n- \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  name: "+name+"\n  "+secret+"\n")
		yaml = strings.ReplaceAll(yaml, "name: "+name+", sds_config: "+sds, "name: "+name+", sds_config: {path_config_source: {path: "+f+"}, resource_api_version: V3}")
	}
	return yaml
}

var listenPort = regexp.MustCompile(`name: [a-zA-Z0-9]+\n    address: \{socket_address: \{address: 127.0.0.1, port_value: ([0-9]+)`)

func startEnvoy(t testing.TB, bin, yaml string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(bin, "-c", file, "--concurrency", "2", "--disable-hot-restart", "--service-node", "n", "--service-cluster", "c", "--log-level", "warning", "--file-flush-interval-msec", "50")
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
