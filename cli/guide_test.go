package cli

import (
	"bytes"
	"encoding/json"
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
	"{GATEWAY2}": `10\.29\.8\.\d+`,
	"{POD}":      `10\.\d+\.\d+\.\d+`,
	"{SERVICE}":  `10\.\d+\.\d+\.\d+`,
	"{ISTIOD}":   `istiod-[a-z0-9]+-[a-z0-9]+`,
	"{SUFFIX}":   `[a-z0-9]+-[a-z0-9]+`,
	"{SERIAL}":   `[0-9a-f]+`,
	"{TIME}":     `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`,
	"{SHA256}":   `([0-9A-F]{2}:){31}[0-9A-F]{2}`,
	"{VERSION}":  `[0-9]+\.[0-9]+\.[0-9]+\S*`,
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
