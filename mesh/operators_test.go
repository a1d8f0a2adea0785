package mesh

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/test/envoytest"
)

// operatorsInUse writes each operator that may be written into a format as it may be.
func operatorsInUse() (formats []string) {
	for _, op := range slices.Concat(plainOperators, optionalOperators) {
		formats = append(formats, "%"+op+"%")
	}
	for _, op := range argumentOperators {
		formats = append(formats, "%"+op+"(a)%")
	}
	return formats
}

// What may be written into a format is known to the built-in proxy, and what is said to be Envoy's alone is not.
func TestOperators(t *testing.T) {
	for _, f := range operatorsInUse() {
		if _, err := accesslog.Parse(f, accesslog.Options{}); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
	for _, op := range envoyOperators {
		if _, err := accesslog.Parse("%"+op+"%", accesslog.Options{}); err == nil {
			t.Errorf("%s: the built-in proxy knows it", op)
		}
	}
}

// What may be written into a format is known to a genuine Envoy.
func TestOperatorsOfEnvoy(t *testing.T) {
	envoy := envoytest.Program(t)
	formats := slices.DeleteFunc(operatorsInUse(), func(f string) bool { // which compile adds extensions for
		return strings.HasPrefix(f, "%REQ_WITHOUT_QUERY(") || strings.HasPrefix(f, "%METADATA(")
	})
	type object = map[string]any
	log := object{"name": "l", "typed_config": object{
		"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/dev/null",
		"log_format": object{"text_format_source": object{"inline_string": strings.Join(formats, " ")}},
	}}
	b, err := json.Marshal(object{"static_resources": object{"listeners": []any{object{
		"name": "l", "address": object{"socket_address": object{"address": "127.0.0.1", "port_value": 1}}, "access_log": []any{log},
		"filter_chains": []any{object{"filters": []any{object{"name": "t", "typed_config": object{
			"@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo",
		}}}}},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(envoy, "--mode", "validate", "-c", file, "--log-level", "error").CombinedOutput(); err != nil {
		t.Errorf("envoy: %v\n%s", err, out)
	}
}
