// Package carrick holds the rules of the house: which package may know which, and what each
// says of itself. The packages are in the folders beside it.
package carrick

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/carrick-mesh/carrick"

// may lists, for each package, which of our packages it may import. A folder's name stands for
// all packages below it too; "*" is anything. Tests are free.
var may = map[string][]string{
	"log":           {},
	"identity":      {},
	"resource":      {},
	"certs":         {},
	"schema":        {},
	"mesh":          {"identity", "schema"},
	"kube":          {"identity", "mesh", "schema", "certs"},
	"compile":       {"mesh", "identity", "resource", "certs"},
	"xds":           {"resource"},
	"debug":         {"mesh", "schema", "identity", "resource", "xds"},
	"control":       {"debug", "kube", "mesh", "compile", "xds", "resource", "identity", "schema"},
	"ca":            {"identity", "certs"},
	"inject":        {"identity", "log", "agent/redirect/spec"},
	"install":       {"schema"},
	"lb":            {},
	"lb/pool":       {},
	"lb/announce":   {},
	"diagnose":      {"mesh", "compile", "resource", "identity", "certs"},
	"cli":           {"*"},
	"xdsclient":     {"resource"},
	"proxy":         {"xdsclient", "resource", "identity", "certs"},
	"agent":         {"xdsclient", "proxy", "identity", "resource", "certs"},
	"cmd":           {"*"},
	"tools":         {},
	"samples":       {},
	"bench":         {"*"},
	"test":          {"*"},
	"kube/kubetest": {},
}

// only lists who may import the module or package that the key begins with.
var only = map[string][]string{
	"k8s.io/client-go": {"kube", "install", "lb", "cli", "cmd/carrick", "test"},
	"github.com/envoyproxy/go-control-plane/envoy/config":     {"compile", "proxy", "agent", "diagnose", "test", "bench"},
	"github.com/envoyproxy/go-control-plane/envoy/extensions": {"compile", "proxy", "agent", "diagnose", "test", "bench"},
	"github.com/spf13/cobra":                                  {"cli", "cmd/carrick"},
}

type pkg struct {
	ImportPath, Doc string
	Imports, Deps   []string
}

func list(t *testing.T, args ...string) (pkgs []pkg) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Doc,Deps"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// under reports whether a package is one of the folders, or below one.
func under(name string, folders []string) bool {
	return slices.ContainsFunc(folders, func(f string) bool {
		return f == "*" || name == f || strings.HasPrefix(name, f+"/")
	})
}

func TestWalls(t *testing.T) {
	for _, p := range list(t, "./...") {
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		if name == "" {
			continue
		}
		if p.Doc == "" {
			t.Errorf("%s has no package doc: one sentence, what it knows and what it does not", name)
		}
		folder, _, _ := strings.Cut(name, "/")
		allow, ok := may[name]
		if !ok {
			allow, ok = may[folder]
		}
		if !ok {
			t.Errorf("%s is not in the table of packages", name)
		}
		for _, i := range p.Imports {
			if ours, in := strings.CutPrefix(i, module+"/"); in && !under(ours, append([]string{folder}, allow...)) {
				t.Errorf("%s may not import %s", name, ours)
			}
			for prefix, who := range only {
				if strings.HasPrefix(i, prefix) && !under(name, who) {
					t.Errorf("%s may not import %s: only %s may", name, i, strings.Join(who, ", "))
				}
			}
		}
	}
}

// A package of templates calls methods by names that it reads, and so keeps the linker from leaving
// out any exported method: with all those of generated code the proxy is half as big again, and most
// of it is resident. gRPC brings one unless its build tag says not to.
func TestProxyLinksNoTemplates(t *testing.T) {
	build := regexp.MustCompile(`(?m)^.* build .*-tags (\S+) .*\./cmd/carrick-proxy$`)
	for _, file := range []string{"Makefile", "tools/dist.sh"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m := build.FindSubmatch(b)
		if m == nil {
			t.Errorf("%s builds ./cmd/carrick-proxy without -tags", file)
			continue
		}
		for _, p := range list(t, "-tags", string(m[1]), "./cmd/carrick-proxy") {
			for _, d := range p.Deps {
				if d == "text/template" || d == "html/template" {
					t.Errorf("%s: with -tags %s carrick-proxy links %s", file, m[1], d)
				}
			}
		}
	}
}

// The proxy's memory is multiplied by every pod: nothing of Kubernetes is linked into it.
func TestProxyLinksNoKubernetes(t *testing.T) {
	for _, p := range list(t, "./cmd/carrick-proxy") {
		for _, d := range p.Deps {
			if strings.HasPrefix(d, "k8s.io/") || strings.HasPrefix(d, "sigs.k8s.io/") || strings.HasPrefix(d, "github.com/spf13/") {
				t.Errorf("carrick-proxy links %s", d)
			}
		}
	}
}

// go install of a released version refuses a module with replace directives.
func TestNoReplace(t *testing.T) {
	b, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "\nreplace ") {
		t.Error("go.mod has a replace directive; go install would refuse the module")
	}
}
