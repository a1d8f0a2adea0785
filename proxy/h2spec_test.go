package proxy

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/summerwind/h2spec"
	"github.com/summerwind/h2spec/config"
)

// TestH2Spec holds the proxy, as its clients see it, to every case of h2spec (RFC 7540 and 7541), in
// its strict mode. The listener speaks HTTP/2 only: one that also takes HTTP/1.1 answers a connection
// preface that is wrong with 400, which h2spec does not expect.
func TestH2Spec(t *testing.T) {
	app := bothBackend(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, "answer")
	})
	port := freePort(t)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), "codec_type: HTTP2"), clusterYAML("b", speaking(speakH2), app)), nil)
	ok, err := h2spec.Run(&config.Config{Host: "127.0.0.1", Port: port, Path: "/", Timeout: 5 * time.Second, MaxHeaderLen: 4000, Strict: true})
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		t.Error("h2spec has failures; its report is above")
	}
}
