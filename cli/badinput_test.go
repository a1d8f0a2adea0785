package cli

import (
	"context"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/kube/kubetest"
	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// bad is what is wrong on a command line: arguments, and what the one line must say.
type bad struct{ args, want string }

// asked is how a verb is used: with arguments that would be right, and, if it asks a cluster, without
// any that it would not need to come so far. {dir} is a directory with the files of badFiles.
type asked struct {
	args    string
	cluster bool
	also    []bad // what can be wrong beside what can be wrong with every verb
}

// badFiles are what users may have: half-written, of another kind, or not there.
var badFiles = map[string]string{
	"half.yaml":     "apiVersion: v1\nkind: Service\nmetadata: {name: [",
	"pod.yaml":      "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: a, image: a}]}\n",
	"gateway.yaml":  "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec: {servers: 5}\n",
	"operator.yaml": "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec: {profile: nonesuch}\n",
	"empty.yaml":    "",
	"mesh.yaml":     "meshID: m\nclusters:\n- {name: a, network: n1}\n- {name: b, network: n2}\n",
	"good.yaml":     "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: a, image: a}]}\n",
	"log.txt":       "no access log\n",
	"half.json":     `{"configs": [{"@type": "type.googleapis.com/`,
}

// verbs has every command of the tree.
var verbs = map[string]asked{
	"analyze": {"", true, []bad{
		{"{dir}/none.yaml", "none.yaml: no such file or directory; check the name"}, {"--use-kube=false {dir}/half.yaml", "half.yaml: document 1"},
		{"-o xml", "-o xml: is not log, json or yaml"}, {"--use-kube=false", "there is nothing to analyze"},
	}},
	"validate":                          {"-f {dir}/good.yaml", false, []bad{{"", "-f FILE is missing"}, {"-f {dir}/half.yaml", "half.yaml: document 1"}, {"-f {dir}/none.yaml", "check the name"}}},
	"ca root":                           {"--dir {dir}/new", false, []bad{{"--key dsa", "--key dsa: is not rsa4096, rsa2048 or p256"}, {"--days 0", "--days 0"}, {"--dir {dir}/ca --key p256", "root-key.pem exists and may be in use"}, {"--dir {dir}/good.yaml/x --key p256", "good.yaml"}}},
	"ca intermediate":                   {"c1 --dir {dir}", false, []bad{{"../x", `"../x" is not a cluster's name`}, {"c1 --dir {dir}", "make a root first (carrick ca root)"}, {"c1 --root-key {dir}/half.yaml --root-cert {dir}/half.yaml", "root-cert.pem"}, {"c1 --days -1", "--days -1"}}},
	"ca install":                        {"c1 --dir {dir}/ca", true, []bad{{"c2 --dir {dir}/ca", "make the CA first: carrick ca intermediate c2"}, {"half --dir {dir}/ca", "ca-cert.pem"}}},
	"ca renew":                          {"c1", true, []bad{{"c1 --days 0", "--days 0"}, {"c1 --key dsa", "--key dsa"}, {"../x", "is not a cluster's name"}}},
	"ca show":                           {"", true, []bad{{"-o xml", "-o xml"}}},
	"create-remote-secret":              {"--name c1", true, []bad{{"--name a/b", "--name"}, {"--name a --auth-type=x", "x"}}},
	"image push":                        {"reg.invalid/x --archive {dir}/none.tar", false, []bad{{"https://reg.invalid/x", "a registry is named without a scheme"}, {"reg.invalid/x --archive {dir}/none.tar", "none.tar"}, {"reg.invalid/x --archive {dir}/pod.yaml", "pod.yaml"}, {"", "accepts 1 arg"}}},
	"experimental create-remote-secret": {"--name c1", true, nil},
	"experimental precheck":             {"", true, nil},
	"experimental check-inject":         {"-l app=x", true, []bad{{"", "name a pod (POD.NAMESPACE), or the labels"}, {"x.y -l app=x", "name a pod (POD.NAMESPACE), or the labels"}, {"-l app", "-l app: want KEY=VALUE"}, {"-l a=b -o xml", "-o xml"}, {"-l a=b -n nowhere", "namespace nowhere"}}},
	"experimental injector list":        {"", true, []bad{{"-o xml", "-o xml"}}},
	"remote-clusters":                   {"", true, []bad{{"-o xml", "-o xml"}}},
	"proxy-status":                      {"", true, []bad{{"-o xml", "-o xml"}}},
	"proxy-config cluster":              {"x.y", true, []bad{{"", "give a proxy"}, {"x.y -o xml", "-o xml"}, {"--file {dir}/half.json", "config dump"}, {"--file {dir}/none", "check the name"}}},
	"proxy-config listener":             {"x.y", true, []bad{{"--file {dir}/half.json", "config dump"}}},
	"proxy-config route":                {"x.y", true, []bad{{"--file {dir}/half.json", "config dump"}}},
	"proxy-config endpoint":             {"x.y", true, []bad{{"--file {dir}/half.json", "clusters"}}},
	"proxy-config secret":               {"x.y", true, []bad{{"--file {dir}/half.json", "config dump"}}},
	"proxy-config bootstrap":            {"x.y", true, []bad{{"--file {dir}/half.json", "config dump"}}},
	"proxy-config log":                  {"x.y", true, []bad{{"x.y --level loud", "--level loud: is not LEVEL"}, {"x.y --level http:debug,info", "stands alone"}}},
	"proxy-config all":                  {"x.y", true, []bad{{"--file {dir}/half.json", "config dump"}}},
	"version":                           {"--remote", true, []bad{{"-o xml --remote=false", "-o xml"}}},
	"install": {"-y", true, []bad{
		{"-y --accept-unenforced Deny", "--accept-unenforced Deny: is not one of Sidecar, EnvoyFilter"},
		{"", "give -y"}, {"-y -f {dir}/none.yaml", "check the name"}, {"-y -f {dir}/half.yaml", "half.yaml"}, {"-y -f {dir}/pod.yaml", "pod.yaml"},
		{"-y -f {dir}/operator.yaml", `nonesuch`}, {"-y --set a=b", "a"}, {"-y --set profile", "profile"},
	}},
	"uninstall":              {"-y", true, nil},
	"upgrade":                {"-y", true, []bad{{"", "nothing of Carrick is installed"}}},
	"tag set":                {"prod --revision canary", true, []bad{{"prod", "--revision is missing"}, {"", "accepts 1 arg"}, {"prod --revision canary", "revision canary is not installed"}}},
	"tag generate":           {"prod --revision canary", false, []bad{{"prod", "--revision is missing"}, {"Prod --revision canary", `"Prod" is not a name`}}},
	"tag list":               {"", true, []bad{{"-o xml", "-o xml: is not table, json or yaml"}}},
	"tag remove":             {"prod", true, []bad{{"prod", "there is no tag prod"}}},
	"manifest chart":         {"-o {dir}/charts", false, []bad{{"", "-o DIR is missing"}, {"-o {dir}/good.yaml", "good.yaml"}}},
	"manifest generate":      {"", false, []bad{{"-f {dir}/none.yaml", "check the name"}, {"-f {dir}/half.yaml", "half.yaml"}, {"-f {dir}/operator.yaml", "nonesuch"}, {"--set profile", "profile"}}},
	"lb install":             {"", true, nil},
	"lb manifest":            {"", false, []bad{{"--set x", "x"}}},
	"lb status":              {"", true, []bad{{"-o xml", "-o xml"}, {"--all-contexts --context=a", "exclude each other"}}},
	"lb uninstall":           {"-y", true, nil},
	"eastwest":               {"--network n1 --install -y", true, []bad{{"", "no control plane is installed in namespace istio-system"}}},
	"kube-inject":            {"-f {dir}/good.yaml", true, []bad{{"", "-f"}, {"-f {dir}/none.yaml", "check the name"}}},
	"mesh apply":             {"-y -f {dir}/mesh.yaml", true, []bad{{"", "-f FILE is missing"}, {"-y -f {dir}/half.yaml", "half.yaml: is no mesh file"}, {"-y -f {dir}/pod.yaml", "pod.yaml"}, {"-f {dir}/mesh.yaml", "give -y"}, {"-y -f {dir}/empty.yaml", "meshID is missing"}}},
	"mesh check":             {"", true, []bad{{"--requests -1", "--requests -1"}, {"--requests 0 --url http://x", "--requests 0"}, {"-o xml", "-o xml"}}},
	"mesh kubeconfig merge":  {"{dir}/kubeconfig --names x", false, []bad{{"{dir}/none --names x", "none: no such file or directory"}, {"{dir}/kubeconfig", "--names has 0 names for 1 files"}, {"{dir}/half.yaml --names x", "half.yaml"}, {"{dir}/good.yaml --names x", "good.yaml"}}},
	"explain":                {"-f {dir}/log.txt", true, []bad{{"--offline -f {dir}/log.txt", "no access-log line came"}, {"--offline -f {dir}/none", "check the name"}}},
	"trace":                  {"x.y http://h.n:80/", true, []bad{{"x.y h.n:80", "is not a URL"}, {"x.y http://h.n/ -o xml", "-o xml"}}},
	"dashboard proxy":        {"x.y", true, nil},
	"dashboard istiod-debug": {"", true, nil},
}

func leaves(c *cobra.Command, path string, found map[string]*cobra.Command) {
	for _, sub := range c.Commands() {
		p := strings.TrimSpace(path + " " + sub.Name())
		switch {
		case sub.Hidden || sub.Name() == "help" || sub.Name() == "completion":
		case sub.HasSubCommands():
			leaves(sub, p, found)
		default:
			found[p] = sub
		}
	}
}

// TestEveryVerb: a verb that the table does not have is a verb whose errors nobody looked at.
func TestEveryVerb(t *testing.T) {
	found := map[string]*cobra.Command{}
	leaves(New("1.0.0"), "", found)
	for p, c := range found {
		if _, ok := verbs[p]; !ok {
			t.Errorf("carrick %s is not in the table of bad input", p)
		}
		if c.Short == "" {
			t.Errorf("carrick %s does not say what it does", p)
		}
	}
	for p := range verbs {
		if found[p] == nil {
			t.Errorf("carrick %s is in the table, but not a command", p)
		}
	}
}

// TestBadInput gives every verb what users give by mistake. Each answers with one line that names
// it and says what helps, fails, and leaves the cluster as it was.
func TestBadInput(t *testing.T) {
	s, good := server(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	for name, text := range badFiles {
		write(name, text)
	}
	b, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	write("kubeconfig", string(b))
	cut := write("cut", string(b[:len(b)/2]))
	for _, args := range []string{"ca root --key=p256 --dir={dir}/ca", "ca intermediate c1 --key=p256 --dir={dir}/ca"} {
		if _, stderr, code := carrick(t, "", strings.Fields(strings.ReplaceAll(args, "{dir}", dir))...); code != 0 {
			t.Fatal(stderr)
		}
	}
	write("ca/half/ca-cert.pem", "-----BEGIN CERTIFICATE-----\nMIIB")
	for _, f := range []string{"ca-key.pem", "cert-chain.pem", "root-cert.pem"} {
		write("ca/half/"+f, "")
	}
	config := func(name string, edit func(*clientcmdapi.Config)) string {
		c, err := clientcmd.Load(b)
		if err != nil {
			t.Fatal(err)
		}
		edit(c)
		file := filepath.Join(dir, name)
		if err := clientcmd.WriteToFile(*c, file); err != nil {
			t.Fatal(err)
		}
		return file
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	// A certificate that is not the server's.
	root, err := os.ReadFile(filepath.Join(dir, "ca", "root-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	type fault struct{ name, kubeconfig, args, want string }
	faults := []fault{
		{"no kubeconfig", filepath.Join(dir, "absent"), "", "absent"},
		{"half a kubeconfig", cut, "", cut},
		{"no such context", good, "--context=nonesuch", `context "nonesuch" is not in the kubeconfig; it has: a, b`},
		{"an empty context", good, "--context=", "--context is empty"},
		{"nothing listens", config("closed", func(c *clientcmdapi.Config) { c.Clusters["c"].Server = "https://" + closed }), "", closed},
		{"a name that is not known", config("name", func(c *clientcmdapi.Config) { c.Clusters["c"].Server = "https://none.invalid:6443" }), "", "none.invalid"},
		{"another CA", config("other-ca", func(c *clientcmdapi.Config) { c.Clusters["c"].CertificateAuthorityData = root }), "", "get the kubeconfig anew"},
		{"an expired token", config("token", func(c *clientcmdapi.Config) { c.AuthInfos["u"].Token = "expired" }), "", "get the kubeconfig, or its token, anew"},
	}
	before := contents(t, s)
	check := func(t *testing.T, kubeconfig, args, want string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		args = strings.ReplaceAll(args, "{dir}", dir)
		stdout, stderr, code := carrickIn(ctx, t, kubeconfig, strings.Fields(args)...)
		said := slices.DeleteFunc(strings.Split(stdout+stderr, "\n"), func(l string) bool { return !strings.HasPrefix(l, "Error: ") && !strings.HasPrefix(l, "✘ ") })
		if code == 0 || len(said) == 0 || len(said) > 2 || !strings.Contains(strings.Join(said, "\n"), want) || ctx.Err() != nil {
			t.Errorf("carrick %s: exit code %d, want one line with %q:\n%s%s", args, code, want, stdout, stderr)
		}
		if strings.Contains(stderr, "Usage:") {
			t.Errorf("carrick %s: the error is lost in the usage:\n%s", args, stderr)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(verbs)) {
		v := verbs[path]
		t.Run(path, func(t *testing.T) {
			check(t, good, path+" --no-such-flag", "unknown flag: --no-such-flag; see: carrick "+path+" --help")
			check(t, good, path+" "+v.args+" sur plus argu ments", "")
			for _, b := range v.also {
				check(t, good, path+" "+b.args, b.want)
			}
			if !v.cluster {
				return
			}
			for _, f := range faults {
				if path == "mesh apply" && f.name == "no such context" { // its file names the contexts
					f.want = "--context is not for mesh apply"
				}
				check(t, f.kubeconfig, path+" "+v.args+" "+f.args, f.want)
			}
		})
	}
	if after := contents(t, s); !slices.Equal(before, after) {
		t.Errorf("something was applied: before %v, after %v", before, after)
	}
}

// contents names what a cluster holds that verbs could have made.
func contents(t *testing.T, s *kubetest.Server) (names []string) {
	t.Helper()
	client, err := dynamic.NewForConfig(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []schema.GroupVersionResource{
		{Version: "v1", Resource: "namespaces"}, {Version: "v1", Resource: "secrets"}, {Version: "v1", Resource: "configmaps"}, {Version: "v1", Resource: "serviceaccounts"},
		{Version: "v1", Resource: "pods"}, {Group: "apps", Version: "v1", Resource: "deployments"}, {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"},
		{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}, {Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"},
	} {
		l, err := client.Resource(r).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range l.Items {
			if o.GetNamespace() != "kube-system" { // the API server's own
				names = append(names, r.Resource+" "+o.GetNamespace()+"/"+o.GetName())
			}
		}
	}
	slices.Sort(names)
	return names
}
