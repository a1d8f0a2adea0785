package cli

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestSendBeside: the container that sends for a pod without curl is the proxy's image, without rights,
// and not the proxy's user; a pod without a sidecar gets none.
func TestSendBeside(t *testing.T) {
	s, kubeconfig := server(t)
	a := &app{target: targetFlags{kubeconfig: kubeconfig}}
	c, err := a.target.connectTo("a")
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse("http://helloworld.sample:5000/hello")
	tr := &tracer{app: a, peers: []*peer{{cluster: c}}, url: u, id: "0f0e0d0c-1111-4222-8333-444455556666", host: "other.example.com", ephemeral: true}
	make := func(name string, containers ...corev1.Container) *corev1.Pod {
		p, err := s.Client.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{Containers: containers}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	bare := make("bare", corev1.Container{Name: "app", Image: "app"})
	found := &traced{}
	if sent, err := tr.sendBeside(t.Context(), bare, "app", found); sent || err != nil || !strings.Contains(found.Notes[0], "container app has no curl, so nothing was sent") {
		t.Errorf("a pod without a sidecar: %v, %v, %q", sent, err, found.Notes)
	}
	pod := make("meshed", corev1.Container{Name: "app", Image: "app"}, corev1.Container{Name: "istio-proxy", Image: "example.com/carrick:1"})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if sent, err := tr.sendBeside(ctx, pod, "app", found); sent || err == nil || !strings.Contains(err.Error(), "does not end: it has not begun") {
		t.Errorf("no kubelet runs it: %v, %v", sent, err)
	}
	pod, err = s.Client.CoreV1().Pods("default").Get(t.Context(), "meshed", metav1.GetOptions{})
	if err != nil || len(pod.Spec.EphemeralContainers) != 1 {
		t.Fatalf("%d ephemeral containers, %v", len(pod.Spec.EphemeralContainers), err)
	}
	e := pod.Spec.EphemeralContainers[0]
	if e.Name != "carrick-trace-0f0e0d0c" || e.Image != "example.com/carrick:1" || *e.SecurityContext.RunAsUser == 1337 || !*e.SecurityContext.RunAsNonRoot || *e.SecurityContext.AllowPrivilegeEscalation {
		t.Errorf("the container is %+v", e)
	}
	got := strings.Join(e.Command, " ")
	for _, want := range []string{"/usr/local/bin/carrick-proxy fetch ", "-H x-request-id: 0f0e0d0c-1111-4222-8333-444455556666", "-H Host: other.example.com", " http://helloworld.sample:5000/hello"} {
		if !strings.Contains(got, want) {
			t.Errorf("the command lacks %q: %s", want, got)
		}
	}
}

// TestFromOutside: the request carries its id where gateways log it, and what does not answer is said.
func TestFromOutside(t *testing.T) {
	var agent, host string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		agent, host = r.UserAgent(), r.Host
		w.WriteHeader(http.StatusTeapot)
		w.Write([]byte("short and stout"))
	}))
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	tr := &tracer{url: u, id: "0f0e0d0c-1111-4222-8333-444455556666", host: "shop.example.com"}
	found := &traced{}
	if err := tr.sendFromHere(t.Context(), found); err != nil || found.Answer != "418" || found.OK || found.Body != "short and stout" {
		t.Errorf("answer %+v, %v", found, err)
	}
	if !strings.Contains(agent, tr.key()) || host != "shop.example.com" {
		t.Errorf("user agent %s, host %s", agent, host)
	}
	s.Close()
	found = &traced{}
	if err := tr.sendFromHere(t.Context(), found); err != nil || found.OK || !strings.Contains(found.Answer, "connection refused") {
		t.Errorf("nothing listens: %+v, %v", found, err)
	}
}
