package cli

import (
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestParseMesh(t *testing.T) {
	f, err := parseMesh([]byte(meshExample))
	if err != nil {
		t.Fatal(err)
	}
	if f.Profile != "default" || f.Root.Dir != "certs" || f.Root.Key != "rsa4096" || f.Clusters[1].Context != "cluster2" || f.networks() != 2 {
		t.Errorf("the example is read as %+v", f)
	}
	for in, want := range map[string]string{
		"":                      "meshID is missing",
		"meshID: m":             "clusters is empty",
		"meshID: m\nnetwork: n": "unknown field",
		"kind: Pod\nmeshID: m":  "want kind Mesh",
		"meshID: m\nprofile: x\nclusters: [{name: a, network: n}]":                        `profile "x" is not one of`,
		"meshID: m\nroot: {key: dsa}\nclusters: [{name: a, network: n}]":                  `root.key "dsa"`,
		"meshID: m\nclusters: [{network: n}]":                                             "clusters[0].name is missing",
		"meshID: m\nclusters: [{name: a}]":                                                "clusters[0].network is missing",
		"meshID: m\nclusters: [{name: a/b, network: n}]":                                  `clusters[0].name "a/b"`,
		"meshID: m\nclusters: [{name: a, network: n}, {name: a, context: b, network: n}]": "clusters[1].name a is that of clusters[0]",
		"meshID: m\nclusters: [{name: a, network: n}, {name: b, context: a, network: n}]": "clusters[1].context a is that of clusters[0]",
	} {
		if _, err := parseMesh([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error is %v, want one with %q", in, err, want)
		}
	}
}

// TestMeshPlan: of empty clusters all is to be done, and a dry run does nothing of it.
func TestMeshPlan(t *testing.T) {
	s, kubeconfig := server(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "mesh.yaml")
	text := "meshID: m\nclusters:\n- {name: a, network: n1, pools: [10.0.0.1-10.0.0.9]}\n- {name: b, network: n2}\n"
	if err := writeFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, stderr, code := carrick(t, kubeconfig, "mesh", "apply", "-f", file, "--dry-run")
	if code != 0 {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	for _, want := range []string{"root CA in " + filepath.Join(dir, "certs"), "make it, with rsa4096", "IPAddressPool mesh", "control plane", "remote secret of b"} {
		if !strings.Contains(out, want) {
			t.Errorf("the plan lacks %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "as it should be") {
		t.Errorf("something is done already:\n%s", out)
	}
	if _, err := s.Client.CoreV1().Namespaces().Get(t.Context(), "istio-system", metav1.GetOptions{}); err == nil {
		t.Error("the dry run made namespace istio-system")
	}
	if _, stderr, code := carrick(t, kubeconfig, "mesh", "apply", "-f", file); code != 2 || !strings.Contains(stderr, "give -y") {
		t.Errorf("without a terminal: exit code %d, %s", code, stderr)
	}
	if _, stderr, code := carrick(t, kubeconfig, "mesh", "apply", "-f", filepath.Join(dir, "none.yaml"), "-y"); code != 1 || !strings.Contains(stderr, "none.yaml") {
		t.Errorf("a file that is not there: exit code %d, %s", code, stderr)
	}
}
