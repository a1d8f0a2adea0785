package main

import (
	"os"
	"strings"
	"testing"
)

func TestMissing(t *testing.T) {
	yes, no := func() bool { return true }, func() bool { return false }
	err := missing([]need{{"root", "", no}, {"ip", "iproute2", yes}, {"nft", "nftables", no},
		{"libseccomp's headers", "libseccomp-dev", no}, {"the static libseccomp", "libseccomp-dev", no}})
	want := "this machine lacks root, nft, libseccomp's headers, the static libseccomp; run: apt-get install -y nftables libseccomp-dev"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if err := missing([]need{{"ip", "iproute2", yes}}); err != nil {
		t.Errorf("with all there: %v", err)
	}
}

// A machine without the programs is told so in one line.
func TestMissingPrograms(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := missing(runNeeds("iptables"))
	if err == nil {
		t.Fatal("nothing is missing with an empty PATH")
	}
	for _, want := range []string{"ip,", "nft,", "iptables;", "apt-get install -y iproute2 nftables"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than a line: %v", err)
	}
}

func TestRunID(t *testing.T) {
	for _, tc := range []struct {
		args, rest, id string
	}{
		{"up", "up", "main"},
		{"--run-id dev up --nodes 2", "up --nodes 2", "dev"},
		{"--run-id=dev up", "up", "dev"},
		{"-run-id dev", "", "dev"},
		{"-n sample get po --run-id x", "-n sample get po --run-id x", "main"},
	} {
		id := "main"
		rest, err := takeRunID(strings.Fields(tc.args), &id)
		if err != nil || strings.Join(rest, " ") != tc.rest || id != tc.id {
			t.Errorf("%q: %q, %q, %v", tc.args, rest, id, err)
		}
	}
	for _, bad := range []string{"--run-id", "--run-id ../x up", "--run-id= up"} {
		id := "main"
		if _, err := takeRunID(strings.Fields(bad), &id); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestUnknownVerb(t *testing.T) {
	if err := run([]string{"upp"}); err == nil || !strings.Contains(err.Error(), `"upp"`) {
		t.Errorf("%v", err)
	}
	// Verbs on a lab that is not there name the command that starts it.
	for _, verb := range []string{"status", "kubeconfig", "kubectl get ns", "exec cluster1 id", "image load " + os.Args[0], "prove", "wan cut", "node stop cluster1"} {
		err := run(append([]string{"--run-id", "not-there"}, strings.Fields(verb)...))
		if err == nil || !strings.Contains(err.Error(), "lab --run-id not-there up") {
			t.Errorf("%s: %v", verb, err)
		}
	}
}
