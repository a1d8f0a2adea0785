package accesslog

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/structpb"
)

// istio is the text format that Istio 1.15 configures.
const istio = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%
`

type headers map[string]string

func (h headers) Get(name string) ([]byte, bool) {
	v, ok := h[name]
	return []byte(v), ok
}

func (h headers) Nth(name string, i int) (string, bool) {
	v, ok := h[name]
	return v, ok && i == 0
}

// fixed has one header without copying.
type fixed struct {
	name  string
	value []byte
}

func (h *fixed) Get(name string) ([]byte, bool) { return h.value, name == h.name }

func (h *fixed) Nth(name string, i int) (string, bool) {
	return unsafe.String(unsafe.SliceData(h.value), len(h.value)), name == h.name && i == 0
}

func entry() *Entry {
	return &Entry{
		Start: time.Date(2026, 11, 24, 7, 3, 9, 45_000_000, time.UTC), Duration: 31 * time.Millisecond,
		Method: "GET", Path: "/hello?x=1&y", Authority: "helloworld.sample:5000", Scheme: "http", Protocol: "HTTP/1.1",
		Header:       headers{"user-agent": "curl/8.16.0", "x-request-id": "9d1f", "x-long": "abcdefgh"},
		Response:     headers{"x-envoy-upstream-service-time": "30"},
		ResponseCode: 200, ResponseCodeDetails: "via_upstream", BytesSent: 60,
		RequestDuration: 0, RequestTx: time.Millisecond, ResponseDuration: 30 * time.Millisecond, ResponseTx: 31 * time.Millisecond,
		UpstreamHost:    netip.MustParseAddrPort("10.29.8.78:15443"),
		UpstreamLocal:   netip.MustParseAddrPort("10.39.0.7:41234"),
		UpstreamCluster: "outbound|5000||helloworld.sample.svc.cluster.local", UpstreamAttempts: 1,
		DownstreamLocal:  netip.MustParseAddrPort("10.96.104.66:5000"),
		DownstreamRemote: netip.MustParseAddrPort("[::ffff:10.39.0.7]:55870"),
		RouteName:        "default",
	}
}

func TestText(t *testing.T) {
	down := entry()
	down.TLS = &TLSInfo{Version: "TLSv1.3", PeerURISAN: "spiffe://cluster.local/ns/sample/sa/sleep", PeerNotAfter: time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)}
	down.Flags = UpstreamConnectionFailure | UpstreamRetryLimitExceeded
	down.Trailer = headers{"grpc-status": "14"}
	for _, c := range []struct {
		format string
		e      *Entry
		want   string
	}{
		{istio, entry(), `[2026-11-24T07:03:09.045Z] "GET /hello?x=1&y HTTP/1.1" 200 - via_upstream - "-" 0 60 31 30 "-" "curl/8.16.0" "9d1f" "helloworld.sample:5000" "10.29.8.78:15443" outbound|5000||helloworld.sample.svc.cluster.local 10.39.0.7:41234 10.96.104.66:5000 10.39.0.7:55870 - default` + "\n"},
		{istio, &Entry{Start: entry().Start, BytesReceived: 5, Flags: NoHealthyUpstream, ServerName: "outbound_.5000_._.x", DownstreamLocal: netip.MustParseAddrPort("[fd00::1]:15443")},
			`[2026-11-24T07:03:09.045Z] "- - -" 0 UH - - "-" 5 0 0 - "-" "-" "-" "-" "-" - - [fd00::1]:15443 - outbound_.5000_._.x -` + "\n"},
		{"%REQ(X-LONG):3% %REQ(X-LONG):0%| 100%%", entry(), "abc | 100%"},
		{"%RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%", down, "UF,URX UpstreamConnectionFailure,UpstreamRetryLimitExceeded"},
		{"%REQ_WITHOUT_QUERY(:PATH)% %QUERY_PARAM(x)% %QUERY_PARAM(z)%", down, "/hello 1 -"},
		{"%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS(NUMBER)% %GRPC_STATUS_NUMBER%", down, "Unavailable UNAVAILABLE 14 14"},
		{"%DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_PEER_SUBJECT% %DOWNSTREAM_PEER_CERT_V_END(%F)% %UPSTREAM_PEER_URI_SAN%", down, "TLSv1.3 spiffe://cluster.local/ns/sample/sa/sleep - 2026-11-25 -"},
		{"%START_TIME(%Y/%m/%dT%H:%M:%S%z %s %3f %6f %f %%)%", down, "2026/11/24T07:03:09+0000 1795503789 045 045000 045000000 %"},
		{"%DYNAMIC_METADATA(a:b)% %FILTER_STATE(x)% %TRACE_ID%", down, "- - -"},
		{"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_PORT% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS% %UPSTREAM_CLUSTER_RAW%", down, "10.39.0.7 55870 10.39.0.7:55870 outbound|5000||helloworld.sample.svc.cluster.local"},
		{"%RESPONSE_TX_DURATION% %REQUEST_TX_DURATION%", down, "1 1"},
		// "GET /hello?x=1&y HTTP/1.1", "host: helloworld.sample:5000", an empty line; "HTTP/1.1 200 OK", an empty line, 60 bytes.
		{"%DOWNSTREAM_HEADER_BYTES_RECEIVED% %DOWNSTREAM_WIRE_BYTES_SENT% %UPSTREAM_WIRE_BYTES_RECEIVED%", down, "59 79 79"},
		{"%DOWNSTREAM_WIRE_BYTES_RECEIVED% %UPSTREAM_WIRE_BYTES_SENT%", &Entry{BytesReceived: 5}, "5 0"},
	} {
		f, err := Parse(c.format, Options{})
		if err != nil {
			t.Errorf("%s: %v", c.format, err)
			continue
		}
		if got := string(f.Append(nil, c.e)); got != c.want {
			t.Errorf("%s:\n got %q\nwant %q", c.format, got, c.want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for format, want := range map[string]string{
		"%NOPE%":                  "%NOPE%: not supported",
		"%REQ%":                   "%REQ%: needs an argument in parentheses",
		"%REQ(a?b?c)%":            `%REQ%: "a?b?c" is not NAME or NAME?ALTERNATIVE`,
		"50% off":                 `has no operator at "% off"`,
		"%PROTOCOL(x)%":           "%PROTOCOL%: takes no argument",
		"%START_TIME(%Q)%":        `%START_TIME%: time format "%Q": %Q is not supported`,
		"%GRPC_STATUS(LOUD)%":     `%GRPC_STATUS%: "LOUD" is none of CAMEL_STRING, SNAKE_STRING, NUMBER`,
		"%REQ(a):99999999999999%": "%REQ%: length 99999999999999 is too large",
	} {
		if _, err := Parse(format, Options{}); err == nil || err.Error() != want {
			t.Errorf("%s: error %v, want %s", format, err, want)
		}
	}
}

func TestJSON(t *testing.T) {
	s, err := structpb.NewStruct(map[string]any{
		"start_time": "%START_TIME%", "bytes": "%BYTES_SENT%", "code": "%RESPONSE_CODE%", "agent": "%REQ(USER-AGENT)%",
		"absent": "%REQ(X-NONE)%", "mixed": "%PROTOCOL%/%REQ(X-NONE)%", "n": 1.5, "t": true, "z": nil,
		"deep": map[string]any{"list": []any{"%ROUTE_NAME%", "x"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	e := entry()
	e.Header = headers{"user-agent": "a\"b\\c\n\x01\xffé"}
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{}, `{"absent":null,"agent":"a\"b\\c\n\u0001\u00ffé","bytes":60,"code":200,"deep":{"list":["default","x"]},"mixed":"HTTP/1.1/-","n":1.5,"start_time":"2026-11-24T07:03:09.045Z","t":true,"z":null}` + "\n"},
		{Options{OmitEmpty: true, NoNewline: true}, `{"agent":"a\"b\\c\n\u0001\u00ffé","bytes":60,"code":200,"deep":{"list":["default","x"]},"mixed":"HTTP/1.1/","n":1.5,"start_time":"2026-11-24T07:03:09.045Z","t":true,"z":null}`},
		{Options{JSONStrings: true}, `{"absent":"-","agent":"a\"b\\c\n\u0001\u00ffé","bytes":"60","code":"200","deep":{"list":["default","x"]},"mixed":"HTTP/1.1/-","n":1.5,"start_time":"2026-11-24T07:03:09.045Z","t":true,"z":null}` + "\n"},
	} {
		f, err := ParseJSON(s, c.o)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.want, string(f.Append(nil, e))); d != "" {
			t.Errorf("%+v: %s", c.o, d)
		}
	}
	if _, err := ParseJSON(&structpb.Struct{Fields: map[string]*structpb.Value{"k": structpb.NewStringValue("%NO%")}}, Options{}); err == nil || err.Error() != `key "k": %NO%: not supported` {
		t.Errorf("error %v", err)
	}
}

func TestHeaderFormat(t *testing.T) {
	f, err := Parse("a%%b %REQ(X-NONE)%", Options{Headers: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(f.Append(nil, entry())); got != "a%b " {
		t.Errorf("got %q", got)
	}
	f, err = Parse("plain", Options{Headers: true})
	if err != nil {
		t.Fatal(err)
	}
	if s, ok := f.Constant(); !ok || s != "plain" {
		t.Errorf("Constant() = %q, %v", s, ok)
	}
}

func TestWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	w := NewWriter(slog.New(slog.DiscardHandler))
	f, err := w.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if g, err := w.Open(path); err != nil || g != f {
		t.Error("a path has two files", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	line, err := Parse("%REQ(:PATH)%\n", Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := f.NewBuffer()
	n := flushAt/len("/hello?x=1&y\n") + 10 // more than one buffer
	for range n {
		b.Append(line, entry())
	}
	b.Flush()
	if err := w.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := w.Reopen(); err != nil {
		t.Fatal(err)
	}
	b.Append(line, entry())
	b.Flush()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]int{path + ".1": n, path: 1} {
		got, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if c := strings.Count(string(got), "/hello?x=1&y\n"); c != want {
			t.Errorf("%s has %d lines, want %d", p, c, want)
		}
	}
}

// A writer that does not get on drops lines instead of blocking.
func TestWriterDrops(t *testing.T) {
	w := NewWriter(slog.New(slog.DiscardHandler))
	f, err := w.Open(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	line, _ := Parse("x", Options{})
	b := f.NewBuffer()
	for range maxQueued + 3 {
		b.Append(line, &Entry{})
		b.Flush()
	}
	if w.Dropped() != 3 {
		t.Errorf("dropped %d buffers, want 3", w.Dropped())
	}
}

func TestAppendDoesNotAllocate(t *testing.T) {
	f, err := Parse(istio, Options{})
	if err != nil {
		t.Fatal(err)
	}
	e := entry()
	h := &fixed{"x-envoy-upstream-service-time", []byte("30")}
	e.Header, e.Response = h, h
	buf := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { buf = f.Append(buf[:0], e) }); n != 0 {
		t.Errorf("a line allocates %v times", n)
	}
}

func BenchmarkIstioLine(b *testing.B) {
	f, err := Parse(istio, Options{})
	if err != nil {
		b.Fatal(err)
	}
	e := entry()
	h := &fixed{"x-envoy-upstream-service-time", []byte("30")}
	e.Header, e.Response = h, h
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = f.Append(buf[:0], e)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{istio, DefaultFormat, "%START_TIME(%Y%3f)%", "%REQ(a?b):3%%%", "%"} {
		f.Add(s)
	}
	e := entry()
	f.Fuzz(func(t *testing.T, s string) {
		if x, err := Parse(s, Options{}); err == nil {
			x.Append(nil, e)
		}
		if x, err := ParseJSON(&structpb.Struct{Fields: map[string]*structpb.Value{"k": structpb.NewStringValue(s)}}, Options{}); err == nil {
			x.Append(nil, e)
		}
	})
}
