package cli

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.yaml")
	run := func(text string, args ...string) (string, int) {
		if err := writeFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, stderr, code := carrick(t, "", append(args, file)...)
		return out + stderr, code
	}
	const good = `apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata: {name: g, namespace: shop}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}
---
kind: ConfigMap
apiVersion: v1
`
	for _, verb := range [][]string{{"validate", "-f"}, {"analyze", "--use-kube=false"}} {
		for in, want := range map[string]string{
			good: "No issues found",
			strings.Replace(good, "number: 80", "number: 0", 1):      "Error (Gateway shop/g file) spec.servers[0].port.number: port 0 does not exist",
			strings.Replace(good, "selector:", "selektor:", 1):       "Error (Gateway shop/g file) spec.selektor: unknown field",
			strings.Replace(good, "number: 80", "number: eighty", 1): "Error (Gateway shop/g file) spec.servers[0].port.number: ",
			strings.Replace(good, "v1alpha3", "v2", 1):               "Error (Gateway shop/g file) apiVersion: there is no version v2",
			"kind: [": "document 1",
		} {
			out, code := run(in, verb...)
			if !strings.Contains(out, want) || (code == 0) != (in == good) {
				t.Errorf("%v: exit code %d, %s, want %q", verb, code, out, want)
			}
		}
	}
	// Go's durations are what Istio takes, and no error.
	const minute = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v}
spec: {hosts: [a.example.com], http: [{timeout: 1m, route: [{destination: {host: a.example.com}}]}]}
`
	if out, code := run(minute, "validate", "-f"); code != 0 {
		t.Errorf("timeout 1m: exit code %d, %s", code, out)
	}
	if out, code := run(strings.Replace(good, "number: 80", "number: 0", 1), "analyze", "--use-kube=false", "-o=json"); code != 1 || !strings.Contains(out, `"level": "Error"`) {
		t.Errorf("JSON: exit code %d, %s", code, out)
	}
}
