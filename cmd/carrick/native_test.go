package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/carrick-mesh/carrick/inject"
	"github.com/carrick-mesh/carrick/kube"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// TestNativeSidecars: from Kubernetes 1.29 on the proxy is an init container that goes on running,
// before that an ordinary container; global.proxy.nativeSidecar overrides it.
func TestNativeSidecars(t *testing.T) {
	for _, tt := range []struct {
		major, minor, values string
		want                 bool
	}{
		{"1", "22", "{}", false}, {"1", "28", "{}", false}, {"1", "28+", "{}", false},
		{"1", "29", "{}", true}, {"1", "29+", "{}", true}, {"1", "34", "{}", true}, {"1", "37", "{}", true},
		{"1", "34", `{"global":{"proxy":{"nativeSidecar":false}}}`, false}, {"1", "28", `{"global":{"proxy":{"nativeSidecar":true}}}`, true},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/version" {
				http.NotFound(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"major":%q,"minor":%q,"gitVersion":"v1.x"}`, tt.major, tt.minor)
		}))
		t.Cleanup(s.Close)
		client, err := kube.Connect(&rest.Config{Host: s.URL})
		if err != nil {
			t.Fatal(err)
		}
		native, err := supportsNative(t.Context(), client)
		if err != nil {
			t.Fatal(err)
		}
		p, err := inject.NewParams(nil, []byte(tt.values), native)
		if err != nil {
			t.Fatal(err)
		}
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}}}
		out, err := inject.Inject(pod, "sample", p)
		if err != nil {
			t.Fatal(err)
		}
		got := false
		for _, c := range out.Spec.InitContainers {
			got = got || c.Name == "istio-proxy" && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		}
		if got != tt.want || len(out.Spec.Containers) == 2 == tt.want {
			t.Errorf("Kubernetes %s.%s, values %s: native sidecar %v, want %v; containers %d", tt.major, tt.minor, tt.values, got, tt.want, len(out.Spec.Containers))
		}
	}
}
