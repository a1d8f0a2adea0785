package cli

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
			strings.Replace(good, "number: 80", "number: 0", 1):      "Error [IST0106] (Gateway shop/g file) spec.servers[0].port.number: port 0 does not exist",
			strings.Replace(good, "selector:", "selektor:", 1):       "Error [IST0106] (Gateway shop/g file) spec.selektor: unknown field",
			strings.Replace(good, "number: 80", "number: eighty", 1): "Error [IST0106] (Gateway shop/g file) spec.servers[0].port.number: ",
			strings.Replace(good, "v1alpha3", "v2", 1):               "Error [IST0106] (Gateway shop/g file) apiVersion: there is no version v2",
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

func TestAnalyzeInjection(t *testing.T) {
	ns := func(labels ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(labels); i += 2 {
			m[labels[i]] = labels[i+1]
		}
		return m
	}
	pod := func(edit func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
		edit(p)
		return p
	}
	sidecar := func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{{Name: "istio-proxy"}} }
	for name, tt := range map[string]struct {
		got  []message
		want string // LEVEL CODE of the one finding, "" for none
	}{
		"not said":        {analyzeNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}), "Info IST0102"},
		"refused":         {analyzeNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: ns("istio-injection", "disabled")}}), ""},
		"two labels":      {analyzeNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: ns("istio-injection", "enabled", "istio.io/rev", "x")}}), "Warning IST0123"},
		"revision":        {analyzeNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: ns("istio.io/rev", "x")}}), ""},
		"missing":         {analyzePod(pod(func(*corev1.Pod) {}), injected), "Warning IST0103"},
		"has one":         {analyzePod(pod(sidecar), injected), ""},
		"opted out":       {analyzePod(pod(func(p *corev1.Pod) { p.Labels = ns("sidecar.istio.io/inject", "false") }), injected), ""},
		"opted in":        {analyzePod(pod(func(p *corev1.Pod) { p.Labels = ns("sidecar.istio.io/inject", "true") }), unsaid), "Warning IST0103"},
		"not in the mesh": {analyzePod(pod(func(*corev1.Pod) {}), unsaid), ""},
		"host network":    {analyzePod(pod(func(p *corev1.Pod) { p.Spec.HostNetwork = true }), injected), ""},
		"user": {analyzePod(pod(func(p *corev1.Pod) {
			sidecar(p)
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: new(int64(1337))}
		}), injected), "Warning IST0144"},
		"user without a sidecar": {analyzePod(pod(func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: new(int64(1337))}
		}), refused), ""},
		"port":  {analyzePorts(&corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "web", Port: 80}}}}), "Info IST0118"},
		"app":   {analyzePorts(&corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80, AppProtocol: new("mariadb")}}}}), "Info IST0118"},
		"known": {analyzePorts(&corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "db", Port: 3306, AppProtocol: new("mariadb")}, {Name: "dns", Port: 53}}}}), ""},
		"ports": {analyzePorts(&corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http-web"}, {Name: "grpc-web"}, {Name: "x", AppProtocol: new("http")}, {Name: "dns", Protocol: "UDP"}}}}), ""},
	} {
		var got []string
		for _, m := range tt.got {
			got = append(got, m.Level+" "+m.Code)
		}
		if strings.Join(got, ", ") != tt.want {
			t.Errorf("%s: %v, want %q", name, tt.got, tt.want)
		}
	}
}

func TestAnalyzeFiles(t *testing.T) {
	dir := t.TempDir()
	bad := "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: NAME}\nspec: {servers: 5}\n"
	for name, text := range map[string]string{"a.yaml": "one", "b.json": "", "c.txt": "no: [", "below/d.yml": "two"} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if text == "one" || text == "two" {
			text = strings.Replace(bad, "NAME", text, 1)
		}
		if err := writeFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		args string
		one  bool
		two  bool
		code int
	}{
		{"analyze --use-kube=false " + dir, true, false, 1},
		{"analyze --use-kube=false -R " + dir, true, true, 1},
		{"validate -R -f " + dir, true, true, 1},
		{"analyze --use-kube=false " + dir + "/none", false, false, 1},
		{"analyze --use-kube=false --failure-threshold=Fatal " + dir, false, false, 2},
	} {
		stdout, stderr, code := carrick(t, "", strings.Fields(tt.args)...)
		if code != tt.code || strings.Contains(stdout, "default/one") != tt.one || strings.Contains(stdout, "default/two") != tt.two {
			t.Errorf("%s: exit code %d\n%s%s", tt.args, code, stdout, stderr)
		}
	}
	warn := []message{finding("IST0103", "Pod a/b", "", "x", "")}
	for threshold, want := range map[string]bool{"Info": true, "Warning": true, "Error": false} {
		if got := reaches(warn, slices.Index(order, threshold)); got != want {
			t.Errorf("a warning reaches %s: %v", threshold, got)
		}
	}
	if got := inOrder(append(warn, finding("IST0101", "Gateway a/c", "", "y", ""), finding("IST0101", "Gateway z/c", "", "y", ""), finding("IST0102", "Namespace a", "", "y", "")), "a"); len(got) != 3 || got[0].Level != "Error" || got[2].Level != "Info" {
		t.Errorf("in order: %v", got)
	}
}
