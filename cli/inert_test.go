package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	apischema "k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/carrick-mesh/carrick/install"
	"github.com/carrick-mesh/carrick/kube/kubetest"
	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/schema"
)

// inertObject is an object of a kind, in a form in which it is for this mesh.
func inertObject(k schema.Kind) map[string]any {
	spec := map[string]any{}
	switch {
	case k.Kind == "GatewayClass":
		spec["controllerName"] = "istio.io/gateway-controller"
	case k.Kind == "Gateway" && k.Group == schema.GatewayAPI:
		spec["gatewayClassName"] = "istio"
	case k.Kind == "ListenerSet", k.Kind == "XListenerSet":
		spec["parentRef"] = map[string]any{"name": "x"}
	case k.Status == schema.Route:
		spec["parentRefs"] = []any{map[string]any{"name": "x"}}
	case k.Status == schema.Policy:
		spec["targetRefs"] = []any{map[string]any{"group": "", "kind": "Service", "name": "x"}}
	case k.Kind == "IngressClass":
		spec["controller"] = "istio.io/ingress-controller"
	case k.Kind == "Ingress":
		spec["ingressClassName"] = "istio"
	case k.Kind == "Sidecar":
		spec["outboundTrafficPolicy"] = map[string]any{"mode": "REGISTRY_ONLY"}
	}
	return map[string]any{"apiVersion": k.APIVersion(), "kind": k.Kind, "metadata": map[string]any{"name": "x"}, "spec": spec}
}

// Every kind without effect is named by validate and analyze; as an Error, with exit code 1, where its
// object protects something. Implementing a kind is what takes it out of the list.
func TestFilesWithoutEffect(t *testing.T) {
	var all []string
	kinds := map[string]string{} // by origin, the level
	for _, k := range schema.Kinds() {
		o := inertObject(k)
		y, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if k.Implemented {
			continue
		}
		all = append(all, string(y))
		origin := k.Name() + " default/x"
		if k.ClusterScoped {
			origin = k.Name() + " x"
		}
		if kinds[origin] = "Warning"; k.Protects(o) {
			kinds[origin] = "Error"
		}
	}
	file := filepath.Join(t.TempDir(), "all.yaml")
	if err := os.WriteFile(file, []byte(strings.Join(all, "---\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, verb := range [][]string{{"validate", "-f"}, {"analyze", "--use-kube=false"}} {
		out, stderr, code := carrick(t, "", append(verb, file)...)
		if code != 1 {
			t.Errorf("%v: exit code %d, %s", verb, code, stderr)
		}
		for origin, level := range kinds {
			if kind, _, _ := strings.Cut(origin, " "); !strings.Contains(out, fmt.Sprintf("%s (%s file)", level, origin)) || !strings.Contains(out, kind+" has NO effect in this version of Carrick: ") {
				t.Errorf("%v does not name %s as %s:\n%s", verb, origin, level, out)
			}
		}
		out, _, code = carrick(t, "", append(append(verb, file), "-o=json")...)
		var found []message
		if err := json.Unmarshal([]byte(out), &found); err != nil || code != 1 || len(found) != len(kinds) {
			t.Errorf("%v -o json: exit code %d, %d messages, want %d; %v", verb, code, len(found), len(kinds), err)
		}
		for _, m := range found {
			if m.Level != kinds[m.Origin] {
				t.Errorf("%v -o json: %+v", verb, m)
			}
		}
	}
	// Those that open nothing are warnings, and the exit code is 0.
	mild := filepath.Join(t.TempDir(), "mild.yaml")
	text := "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: db}\nspec: {hosts: [db.example.com]}\n"
	if err := os.WriteFile(mild, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, stderr, code := carrick(t, "", "validate", "-f", mild); code != 0 || !strings.HasPrefix(out, "Warning (ServiceEntry default/db file) ServiceEntry has NO effect") {
		t.Errorf("exit code %d, %s%s", code, out, stderr)
	}
}

// defineAll makes the CRDs of Istio.
func defineAll(t *testing.T, d dynamic.Interface) {
	t.Helper()
	files, err := filepath.Glob("../install/crds/*.istio.io.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("there are no CRDs", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(b, &u.Object); err != nil {
			t.Fatal(err)
		}
		u.SetLabels(map[string]string{install.ManagedBy: "carrick"})
		r := d.Resource(apischema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
		if _, err := r.Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

func createInert(t *testing.T, d dynamic.Interface, name string) {
	t.Helper()
	k, ok := schema.Named(name)
	if !ok {
		t.Fatal(name)
	}
	r := d.Resource(apischema.GroupVersionResource{Group: k.Group, Version: k.Versions[0], Resource: k.Plural}).Namespace("default")
	o := inertObject(k)
	if name == "ServiceEntry" {
		o["spec"] = map[string]any{"hosts": []any{"db.example.com"}}
	}
	eventually(t, name+" is taken", func() bool {
		_, err := r.Create(t.Context(), &unstructured.Unstructured{Object: o}, metav1.CreateOptions{})
		return err == nil
	})
}

// Commands that read or change a cluster name its objects without effect, and install does not begin
// while a protection would end that nobody has given up by name.
func TestClusterWithoutEffect(t *testing.T) {
	s, kubeconfig := server(t)
	d, err := dynamic.NewForConfig(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	defineAll(t, d)
	for _, kind := range []string{"AuthorizationPolicy", "RequestAuthentication", "Sidecar", "ServiceEntry"} {
		createInert(t, d, kind)
	}
	named := func(what, out string) {
		t.Helper()
		for _, want := range []string{
			"Error (AuthorizationPolicy default/x) AuthorizationPolicy has NO effect in this version of Carrick: ", "Error (RequestAuthentication default/x) ",
			"Error (Sidecar default/x) ", "Warning (ServiceEntry default/x) ServiceEntry has NO effect in this version of Carrick: ",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("%s does not say %q:\n%s", what, want, out)
			}
		}
	}
	out, _, code := carrick(t, kubeconfig, "x", "precheck", "--context=a")
	if named("precheck", out); code != 1 || !strings.Contains(out, "✘ Error (AuthorizationPolicy") || !strings.Contains(out, "! Warning (ServiceEntry") {
		t.Errorf("precheck: exit code %d\n%s", code, out)
	}

	installDry := func(args ...string) (string, string, int) {
		return carrick(t, kubeconfig, append([]string{"install", "--context=a", "--dry-run"}, args...)...)
	}
	_, stderr, code := installDry()
	named("install", stderr)
	if code != 1 || !strings.Contains(stderr, "1 AuthorizationPolicy, 1 RequestAuthentication, 1 Sidecar") || !strings.Contains(stderr, "--accept-unenforced AuthorizationPolicy,RequestAuthentication,Sidecar") {
		t.Errorf("install: exit code %d\n%s", code, stderr)
	}
	if _, stderr, code := installDry("--accept-unenforced=AuthorizationPolicy,Sidecar"); code != 1 || !strings.Contains(stderr, "would have no effect: 1 RequestAuthentication;") {
		t.Errorf("install with two of three given up: exit code %d\n%s", code, stderr)
	}
	out, stderr, code = installDry("--accept-unenforced=AuthorizationPolicy,sidecar", "--accept-unenforced=RequestAuthentication")
	if named("install", stderr); code != 0 || !strings.Contains(out, "This will install Carrick") {
		t.Errorf("install with all given up: exit code %d\n%s%s", code, out, stderr)
	}
	if _, stderr, code := installDry("--adopt"); code != 1 || !strings.Contains(stderr, "--accept-unenforced AuthorizationPolicy,RequestAuthentication,Sidecar") {
		t.Errorf("install --adopt: exit code %d\n%s", code, stderr)
	}
	file := filepath.Join(t.TempDir(), "mesh.yaml")
	text := "meshID: m\nclusters:\n- {name: a, network: n1}\n- {name: b, network: n2}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr, code = carrick(t, kubeconfig, "mesh", "apply", "-y", "-f", file)
	if named("mesh apply", stderr); code != 1 || !strings.Contains(stderr, "--accept-unenforced AuthorizationPolicy,RequestAuthentication,Sidecar") {
		t.Errorf("mesh apply: exit code %d\n%s", code, stderr)
	}
	if _, stderr, code := installDry("--accept-unenforced=Deny"); code != 2 || !strings.Contains(stderr, "--accept-unenforced Deny: is not one of ") {
		t.Errorf("a kind that there is not: exit code %d\n%s", code, stderr)
	}
}

// Where Carrick serves already nothing ends, so a change of the installation goes on; upgrade and
// install name the objects all the same.
func TestInstalledWithoutEffect(t *testing.T) {
	s, kubeconfig := server(t)
	d, err := dynamic.NewForConfig(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	defineAll(t, d)
	createInert(t, d, "AuthorizationPolicy")
	saveInstalled(t, s)
	for _, args := range [][]string{{"install", "--dry-run"}, {"upgrade", "--dry-run"}} {
		out, stderr, code := carrick(t, kubeconfig, append(args, "--context=a")...)
		if code != 0 || !strings.Contains(stderr, "! Error (AuthorizationPolicy default/x) ") {
			t.Errorf("%v: exit code %d\n%s%s", args, code, out, stderr)
		}
		if strings.Count(stderr, "AuthorizationPolicy default/x") != 1 {
			t.Errorf("%v names it more than once:\n%s", args, stderr)
		}
	}
	out, stderr, code := carrick(t, kubeconfig, "analyze", "-A", "--context=a")
	if code != 1 || !strings.Contains(out, "Error (AuthorizationPolicy default/x Kubernetes) AuthorizationPolicy has NO effect") {
		t.Errorf("analyze: exit code %d\n%s%s", code, out, stderr)
	}
}

// mesh check fails for what protects nothing, warns of the rest, and has both in its JSON.
func TestMeshCheckWithoutEffect(t *testing.T) {
	m := &member{cluster: &cluster{context: "a"}, cfg: &install.Config{Cluster: "c1"}, inert: messages("", []mesh.Finding{
		{Object: mesh.Key{Kind: "AuthorizationPolicy", Namespace: "ns", Name: "deny"}, Message: "m", Level: "Error"},
		{Object: mesh.Key{Kind: "ServiceEntry", Namespace: "ns", Name: "db"}, Message: "n", Level: "Warning"},
	})}
	var bad findings
	bad.addInert(m)
	var out bytes.Buffer
	if err := bad.print(&out, []*member{m}, "table"); err == nil || !strings.Contains(out.String(), "✘ a: Error (AuthorizationPolicy ns/deny) m") || !strings.Contains(out.String(), "! Warning (ServiceEntry ns/db a) n") {
		t.Errorf("%v\n%s", err, out.String())
	}
	out.Reset()
	if err := bad.print(&out, []*member{m}, "json"); err == nil || !strings.Contains(out.String(), `"level": "Error"`) || !strings.Contains(out.String(), `"level": "Warning"`) {
		t.Errorf("%v\n%s", err, out.String())
	}
	m.inert = m.inert[1:]
	out.Reset()
	if err := (findings{}).print(&out, []*member{m}, "table"); err != nil || !strings.Contains(out.String(), "! Warning (ServiceEntry") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// saveInstalled makes what an installation leaves in a cluster to know itself by.
func saveInstalled(t *testing.T, s *kubetest.Server) {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: install.DefaultNamespace}}
	if _, err := s.Client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	name := install.ControlPlaneName("")
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		"carrick.dev/state": "true", install.ManagedBy: "carrick", install.InstallLabel: name}},
		Data: map[string]string{"version": "1.0.0", "set": "[]", "inventory": "[]"}}
	if _, err := s.Client.CoreV1().ConfigMaps(ns.Name).Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// eventually polls what is true soon.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}
