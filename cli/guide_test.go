package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/ca"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
)

// variable parts of what the guide shows, by the name that patterns give them.
var variable = map[string]string{
	"{GATEWAY2}":   `10\.29\.8\.\d+`,
	"{POD}":        `10\.\d+\.\d+\.\d+`,
	"{SERVICE}":    `10\.\d+\.\d+\.\d+`,
	"{ISTIOD}":     `istiod-[a-z0-9]+-[a-z0-9]+`,
	"{SUFFIX}":     `[a-z0-9]+-[a-z0-9]+`,
	"{SERIAL}":     `[0-9a-f]+`,
	"{TIME}":       `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`,
	"{SHA256}":     `([0-9A-F]{2}:){31}[0-9A-F]{2}`,
	"{VERSION}":    `[0-9]+\.[0-9]+\.[0-9]+\S*`,
	"{SERIES}":     `[0-9]+\.[0-9]+`,
	"{RANGE}":      fmt.Sprintf(`1\.%d to 1\.%d`, oldestMinor, newestMinor),
	"{CONTEXT}":    `\S+`,
	"{SERVER}":     `https://\S+`,
	"{KUBERNETES}": fmt.Sprintf(`v1\.%d\.\d+`, newestMinor),
}

// TestGuide: what the verbs print of a mesh made by the guide (captured in the lab) is what the
// guide shows, line by line.
func TestGuide(t *testing.T) {
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata", "guide", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var statuses bytes.Buffer
	cmd := &cobra.Command{}
	cmd.SetOut(&statuses)
	all, err := syncStates([]string{"istiod-5d5556df97-hs96s"}, [][]byte{read("syncz.json")})
	if err != nil {
		t.Fatal(err)
	}
	if err := printStates(cmd, all); err != nil {
		t.Fatal(err)
	}
	var remotes bytes.Buffer
	states, err := clusterStates([]string{"istiod-5d5556df97-hs96s"}, [][]byte{read("clusterz.json")})
	if err != nil {
		t.Fatal(err)
	}
	if err := printClusters(&remotes, states); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		out, stderr, code := carrick(t, "", args...)
		if code != 0 {
			t.Fatalf("%v: exit code %d, %s", args, code, stderr)
		}
		return out
	}
	for name, got := range map[string]string{
		"proxy-status":    statuses.String(),
		"remote-clusters": remotes.String(),
		"route-5000":      run("proxy-config", "route", "--file=testdata/guide/dump.json", "--name=5000", "-o=yaml"),
		"endpoints":       run("proxy-config", "endpoints", "--file=testdata/guide/clusters.json", "--cluster=outbound|5000||helloworld.sample.svc.cluster.local"),
	} {
		match(t, name, string(read(name+".pattern")), got)
	}
	if !json.Valid(read("dump.json")) {
		t.Error("the capture is no JSON")
	}
}

// TestGuideCA: two clusters' CAs side by side, before the guide's step 7 and after.
func TestGuideCA(t *testing.T) {
	view := func(context, secret string, data map[string][]byte) caView {
		chain, err := chainOf(&corev1.Secret{Data: data})
		if err != nil {
			t.Fatal(err)
		}
		return viewCA(context, secret, chain, time.Now())
	}
	own := func() map[string][]byte {
		old, err := ca.NewRoot(ca.RootOptions{Organization: "cluster.local", Key: ca.P256})
		if err != nil {
			t.Fatal(err)
		}
		data, err := ca.RenewSelfSigned(map[string][]byte{"ca-cert.pem": old.CertPEM}) // as the control plane makes it
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	root, err := ca.NewRoot(ca.RootOptions{Key: ca.P256})
	if err != nil {
		t.Fatal(err)
	}
	under := func(cluster string) map[string][]byte {
		im, err := ca.NewIntermediate(*root, ca.IntermediateOptions{Cluster: cluster, Key: ca.P256})
		if err != nil {
			t.Fatal(err)
		}
		return im.Files()
	}
	for name, v := range map[string]caViews{
		"ca-show":      {Clusters: []caView{view("a", "istio-ca-secret", own()), view("b", "istio-ca-secret", own())}},
		"ca-show-same": {Clusters: []caView{view("a", "cacerts", under("cluster1")), view("b", "cacerts", under("cluster2"))}, SameRoot: true},
	} {
		var out bytes.Buffer
		if err := v.print(&out); err != nil {
			t.Fatal(err)
		}
		pattern, err := os.ReadFile(filepath.Join("testdata", "guide", name+".pattern"))
		if err != nil {
			t.Fatal(err)
		}
		match(t, name, string(pattern), out.String())
	}
}

// TestGuidePrecheck: what x precheck prints is what the guide shows, and the READMEs' table of
// versions is the one that it prints. The newest Kubernetes is that of the lab.
func TestGuidePrecheck(t *testing.T) {
	pattern, err := os.ReadFile(filepath.Join("testdata", "guide", "precheck.pattern"))
	if err != nil {
		t.Fatal(err)
	}
	version, err := os.ReadFile("../VERSION")
	if err != nil {
		t.Fatal(err)
	}
	row := fmt.Sprintf("| %s | 1.%d to 1.%d |", series(strings.TrimSpace(string(version))), oldestMinor, newestMinor)
	for _, file := range []string{"../README.md", "../README.zh-CN.md"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		match(t, file, string(pattern), shown(t, file, string(b), "carrick x precheck"))
		if !strings.Contains(strings.ReplaceAll(string(b), " 至 ", " to "), "\n| Carrick | Kubernetes |\n|---|---|\n"+row+"\n") {
			t.Errorf("%s: the table of versions lacks the row %s", file, row)
		}
	}
	b, err := os.ReadFile("../lab/build/build.go")
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("\nconst Kubernetes = \"v1.%d.", newestMinor); !strings.Contains(string(b), want) {
		t.Errorf("lab/build/build.go lacks %q: the newest Kubernetes that is supported is the one that the lab tests", want)
	}
	_, kubeconfig := server(t)
	out, stderr, code := carrick(t, kubeconfig, "x", "precheck")
	if code != 0 {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	match(t, "x precheck", string(pattern), out)
}

// shown returns what a document shows of a command's output: the lines of the indented block that
// follow the first command that begins so, up to the next command.
func shown(t *testing.T, file, doc, command string) string {
	t.Helper()
	_, rest, found := strings.Cut(doc, "\n    $ "+command)
	if !found {
		t.Fatalf("%s does not show %s", file, command)
	}
	_, rest, _ = strings.Cut(rest, "\n")
	var out []string
	for line := range strings.Lines(rest) {
		text, block := strings.CutPrefix(line, "    ")
		if strings.HasPrefix(text, "$ ") || !block && strings.TrimSpace(line) != "" {
			break
		}
		out = append(out, strings.TrimRight(text, "\n"))
	}
	return strings.Join(out, "\n")
}

// match compares a text with a pattern, line by line.
func match(t *testing.T, name, pattern, got string) {
	t.Helper()
	want, have := strings.Split(strings.TrimRight(pattern, "\n"), "\n"), strings.Split(strings.TrimRight(got, "\n"), "\n")
	if len(want) != len(have) {
		t.Errorf("%s: %d lines, want %d:\n%s", name, len(have), len(want), got)
		return
	}
	for i, w := range want {
		for k, v := range variable {
			w = strings.ReplaceAll(w, k, v)
		}
		if !regexp.MustCompile("^" + w + "$").MatchString(have[i]) {
			t.Errorf("%s, line %d: %q, want one like %q", name, i+1, have[i], want[i])
		}
	}
}
