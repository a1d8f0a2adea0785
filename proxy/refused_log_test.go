package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// logCase is a client's exchange and the line that it leaves.
type logCase struct {
	want string
	send string                              // HTTP/1, or
	h2   func(t *testing.T, f *http2.Framer) // HTTP/2
}

func block(fields ...string) []byte {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

func h2Request1(path string, end bool, more ...string) func(t *testing.T, f *http2.Framer) {
	return func(t *testing.T, f *http2.Framer) {
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: end,
			BlockFragment: block(append([]string{":method", "POST", ":scheme", "http", ":authority", "a", ":path", path}, more...)...)})
	}
}

var grpcFields = []string{"content-type", "application/grpc", "te", "trailers"}

// TestRefusedLog: requests that end otherwise than with an upstream's answer leave Envoy's line.
func TestRefusedLog(t *testing.T) { engines(t, testRefusedLog) }

func testRefusedLog(t *testing.T, run func(yaml string)) {
	arrived := make(chan struct{}, 64)
	app := tcpServer(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			switch req.URL.Path {
			case "/nonsense":
				io.WriteString(c, "nonsense\r\n\r\n")
				return
			case "/hang", "/hang/timeout", "/deadline", "/duration":
				arrived <- struct{}{}
				io.Copy(io.Discard, r)
				return
			}
			io.Copy(io.Discard, req.Body)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	dead := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	file := filepath.Join(t.TempDir(), "log")
	port := freePort(t)
	run(bootstrap(httpListener(port, `
- name: all
  domains: ["*"]
  routes:
  - {match: {prefix: /none}, route: {cluster: none}}
  - {match: {path: /dead}, route: {cluster: dead}}
  - {match: {prefix: /retry}, route: {cluster: half, retry_policy: {retry_on: connect-failure, num_retries: 5, retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: {"@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}]}}}
  - {match: {prefix: /deadline}, route: {cluster: b, max_stream_duration: {grpc_timeout_header_max: 0s}}}
  - {match: {prefix: /duration}, route: {cluster: b, max_stream_duration: {max_stream_duration: 0.1s}}}
  - {match: {prefix: /direct}, direct_response: {status: 418, body: {inline_string: "tea"}}}
  - {match: {prefix: /fault}, route: {cluster: b}, typed_per_filter_config: {envoy.filters.http.fault: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 503, percentage: {numerator: 100}}}}}
  - {match: {prefix: /b}, route: {cluster: b}}
  - {match: {prefix: /hang/timeout}, route: {cluster: b, timeout: 0.1s}}
  - {match: {prefix: /hang}, route: {cluster: b, timeout: 0s}}
  - {match: {prefix: /nonsense}, route: {cluster: b}}
`, `
access_log:
- name: envoy.access_loggers.file
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
    path: `+file+`
    log_format: {text_format_source: {inline_string: "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% tf=%UPSTREAM_TRANSPORT_FAILURE_REASON% %PROTOCOL% tx=%BYTES_SENT% grpc=%GRPC_STATUS_NUMBER%\n"}}
`), clusterYAML("b", "", app)+clusterYAML("dead", "", dead)+clusterYAML("half", "", dead, app)+"  - {name: none, connect_timeout: 1s, load_assignment: {cluster_name: none}}\n"))
	gone := func(then func(t *testing.T, f *http2.Framer)) func(t *testing.T, f *http2.Framer) {
		return func(t *testing.T, f *http2.Framer) {
			h2Request1("/hang", true)(t, f)
			<-arrived
			then(t, f)
		}
	}
	var want []string
	for _, c := range []logCase{
		{want: "400 DPE http1.codec_error tf=- HTTP/1.1 tx=11 grpc=-", send: "GET /b HTTP/1.1\r\nHost: a\r\nX Y: z\r\n\r\n"},
		{want: "400 - missing_host_header tf=- HTTP/1.1 tx=0 grpc=-", send: "GET /b HTTP/1.1\r\n\r\n"},
		{want: "431 DPE http1.headers_too_large tf=- HTTP/1.1 tx=31 grpc=-", send: "GET /b HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("y", 70_000) + "\r\n\r\n"},
		{want: "431 DPE http1.too_many_headers tf=- HTTP/1.1 tx=31 grpc=-", send: "GET /b HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("x: y\r\n", 101) + "\r\n"},
		{want: "400 DPE http1.codec_error tf=- HTTP/1.1 tx=11 grpc=-", send: "POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"},
		{want: "501 DPE http1.invalid_transfer_encoding tf=- HTTP/1.1 tx=15 grpc=-", send: "POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\nzz\r\n"},
		{want: "400 - path_normalization_failed tf=- HTTP/1.1 tx=0 grpc=-", send: "GET /b#c HTTP/1.1\r\nHost: a\r\n\r\n"},
		{want: "426 DPE low_version tf=- HTTP/1.0 tx=16 grpc=-", send: "GET /b HTTP/1.0\r\n\r\n"},
		{want: "404 NR route_not_found tf=- HTTP/1.1 tx=0 grpc=-", send: "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"},
		{want: "404 NR route_not_found tf=- HTTP/1.1 tx=0 grpc=-", send: "GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"},
		{want: "418 - direct_response tf=- HTTP/1.1 tx=3 grpc=-", send: "GET /direct HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"},
		{want: "503 UH no_healthy_upstream tf=- HTTP/1.1 tx=19 grpc=-", send: "GET /none HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"},
		{want: "503 UF upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused} tf=delayed_connect_error:_Connection_refused HTTP/1.1 tx=98 grpc=-", send: "GET /dead HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"},
		{want: "502 UPE upstream_reset_before_response_started{protocol_error} tf=- HTTP/1.1 tx=87 grpc=-", send: "GET /nonsense HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"},
		{want: "200 - via_upstream tf=- HTTP/1.1 tx=2 grpc=-", send: "GET /retry HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"},
		{want: "200 - via_upstream tf=- HTTP/1.1 tx=2 grpc=-", send: "GET /retry HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"},
		{want: "200 - via_upstream tf=- HTTP/1.1 tx=2 grpc=-", send: "GET /retry HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"},
		{want: "504 - max_duration_timeout tf=- HTTP/1.1 tx=27 grpc=-", send: "GET /duration HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"},
		{want: "408 - max_duration_timeout tf=- HTTP/1.1 tx=27 grpc=-", send: "POST /duration HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"},
		{want: "504 UT response_timeout tf=- HTTP/1.1 tx=24 grpc=-", send: "GET /hang/timeout HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"},
		{want: "200 NR route_not_found tf=- HTTP/2 tx=0 grpc=12", h2: h2Request1("/x", true, grpcFields...)},
		{want: "200 UH no_healthy_upstream tf=- HTTP/2 tx=0 grpc=14", h2: h2Request1("/none", true, grpcFields...)},
		{want: "200 UF upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused} tf=delayed_connect_error:_Connection_refused HTTP/2 tx=0 grpc=14", h2: h2Request1("/dead", true, grpcFields...)},
		{want: "200 - direct_response tf=- HTTP/2 tx=0 grpc=2", h2: h2Request1("/direct", true, grpcFields...)},
		{want: "200 FI fault_filter_abort tf=- HTTP/2 tx=0 grpc=14", h2: h2Request1("/fault", true, grpcFields...)},
		{want: "200 - max_duration_timeout tf=- HTTP/2 tx=0 grpc=4", h2: h2Request1("/deadline", true, append(grpcFields, "grpc-timeout", "100m")...)},
		{want: "200 - max_duration_timeout tf=- HTTP/2 tx=0 grpc=4", h2: h2Request1("/duration", true, grpcFields...)},
		{want: "0 DPE http2.invalid.header.field tf=- HTTP/2 tx=0 grpc=-", h2: h2Request1("/b", true, "X-Upper", "x")},
		{want: "0 DPE http2.invalid.header.field tf=- HTTP/2 tx=0 grpc=-", h2: h2Request1("/b", true, "connection", "x")},
		{want: "0 DPE http2.violation.of.messaging.rule tf=- HTTP/2 tx=0 grpc=-", h2: func(t *testing.T, f *http2.Framer) {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: block(":method", "GET", ":scheme", "http", ":authority", "a")})
		}},
		{want: "0 DPE http2.violation.of.messaging.rule tf=- HTTP/2 tx=0 grpc=-", h2: h2Request1("/b", true, "content-length", "3")},
		{want: "0 DR http2.remote_reset tf=- HTTP/2 tx=0 grpc=-", h2: gone(func(t *testing.T, f *http2.Framer) { f.WriteRSTStream(1, http2.ErrCodeCancel) })},
		{want: "0 DPE http2.protocol_error tf=- HTTP/2 tx=0 grpc=-", h2: gone(func(t *testing.T, f *http2.Framer) { f.WriteWindowUpdate(0, 0) })},
		{want: "0 DPE http2.protocol_error tf=- HTTP/2 tx=0 grpc=-", h2: gone(func(t *testing.T, f *http2.Framer) { f.WriteContinuation(3, true, nil) })},
	} {
		want = append(want, c.want)
		if c.h2 != nil {
			f := framer(t, port)
			f.AllowIllegalWrites = true
			c.h2(t, f)
		} else {
			io.WriteString(connect(t, port), c.send)
		}
	}
	var got []string
	for end := time.Now().Add(10 * time.Second); len(got) < len(want) && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		b, _ := os.ReadFile(file)
		// Envoy has the words of its library, and does not know yet what it refuses to speak.
		text := strings.NewReplacer("codec_error:The_user_callback_function_failed", "http2.protocol_error",
			"low_version tf=- HTTP/1.1", "low_version tf=- HTTP/1.0").Replace(string(b))
		got = strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	}
	slices.Sort(got)
	slices.Sort(want)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("lines, - wanted + got:\n%s", d)
	}
}
