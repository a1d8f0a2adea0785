package kube

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// What hand-made remote secrets hold: what works, and what is said of the rest.
func TestRemoteConfigOfTheField(t *testing.T) {
	ca := root(t, newKey(t), "A")
	good := kubeconfig("c", "https://10.0.0.1:6443", ca, "abc")
	for _, tt := range []struct{ name, text, want string }{
		{"good", good, ""},
		{"a token with its line's end", strings.Replace(good, "token: abc", `token: " abc\n"`, 1), ""},
		{"a token of two lines", strings.Replace(good, "token: abc", `token: "ab\nc"`, 1), "a token of user \"c\" with blanks"},
		{"no current-context", strings.Replace(good, "current-context: c", "", 1), "has no current-context; set it to one of its contexts: c"},
		{"another current-context", strings.Replace(good, "current-context: c", "current-context: d", 1), `has current-context "d", which is not one of its contexts: c`},
		{"a context without its cluster", strings.Replace(good, "context: {cluster: c,", "context: {cluster: e,", 1), `has no cluster "e", which context "c" names`},
		{"a context without its user", strings.Replace(good, "user: c}", "user: e}", 1), `has no user "e", which context "c" names`},
		{"a damaged CA", kubeconfig("c", "https://10.0.0.1:6443", ca[:100], "abc"), `certificate-authority-data of cluster "c": it block 1 (line 1): it is cut off`},
		{"not verified", strings.Replace(good, "certificate-authority-data:", "insecure-skip-tls-verify: true, x:", 1), ""},
		{"exec", strings.Replace(good, "{token: abc}", "{exec: {command: gke, apiVersion: client.authentication.k8s.io/v1}}", 1), "uses exec, which a remote secret may not"},
		{"a file", strings.Replace(good, "{token: abc}", "{tokenFile: /t}", 1), "uses tokenFile"},
		{"no YAML", "\t{", "reading the kubeconfig"},
	} {
		c, err := RemoteConfig([]byte(tt.text))
		if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "KUBERNETES_MASTER")) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if err == nil && c.BearerToken != "abc" {
			t.Errorf("%s: token %q", tt.name, c.BearerToken)
		}
	}
}

// An API server that answers is not called silent: after an uninstall it refuses the account.
func TestRefusalIsNotSilence(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}`)
	}))
	c, err := Connect(&rest.Config{Host: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	at := silence{since: time.Now(), why: c.ping(t.Context())}
	if got := at.String(); !strings.Contains(got, "401 Unauthorized") || !strings.Contains(got, "create-remote-secret") || strings.Contains(got, "not answered") {
		t.Errorf("refused: %s", got)
	}
	s.Close()
	at.why = c.ping(t.Context())
	if got := at.String(); !strings.Contains(got, "has not answered since") {
		t.Errorf("silent: %s", got)
	}
	if got := cause(at.why, "https://localhost:6443"); !strings.Contains(got, "loopback address") {
		t.Errorf("a loopback server: %s", got)
	}
	if got := cause(errors.New("x"), "https://10.0.0.1"); got != "x" {
		t.Errorf("anything else: %s", got)
	}
}
