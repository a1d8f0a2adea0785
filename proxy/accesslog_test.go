package proxy

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// logged is what each operator is expected to give for the request of testAccessLog: a regular
// expression for the value in text; where JSON differs, its value follows after a tab.
var logged = map[string]string{
	`%START_TIME%`:                                     `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`,
	`%START_TIME(%s.%3f)%`:                             `\d{10}\.\d{3}`,
	`%START_TIME(%Y/%m/%dT%H:%M:%S%z)%`:                `\d{4}/\d\d/\d\dT\d\d:\d\d:\d\d\+0000`,
	`%REQ(:METHOD)%`:                                   `POST`,
	`%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%`:               `/old/p\?q=1&r=2`,
	`%REQ(:PATH)%`:                                     `/new/p\?q=1&r=2`,
	`%REQ(X-NONE)%`:                                    "-\tnull",
	`%REQ(X-LONG):4%`:                                  `abcd`,
	`%REQ(USER-AGENT)%`:                                `test/1`,
	`%REQ(X-FORWARDED-FOR)%`:                           "10.1.2.3",
	`%REQ(X-REQUEST-ID)%`:                              `id-1`,
	`%REQ(:AUTHORITY)%`:                                `helloworld:5000`,
	`%PROTOCOL%`:                                       `HTTP/1\.1`,
	`%UPSTREAM_PROTOCOL%`:                              `HTTP/1\.1`,
	`%RESPONSE_CODE%`:                                  "201\t201",
	`%RESPONSE_FLAGS%`:                                 `-`,
	`%RESPONSE_FLAGS_LONG%`:                            `-`,
	`%RESPONSE_CODE_DETAILS%`:                          `via_upstream`,
	`%CONNECTION_TERMINATION_DETAILS%`:                 "-\tnull",
	`%UPSTREAM_TRANSPORT_FAILURE_REASON%`:              "-\tnull",
	`%BYTES_RECEIVED%`:                                 "4\t4",
	`%BYTES_SENT%`:                                     "6\t6",
	`%DURATION%`:                                       `\d+`,
	`%REQUEST_DURATION%`:                               `\d+`,
	`%REQUEST_TX_DURATION%`:                            `\d+`,
	`%RESPONSE_DURATION%`:                              `\d+`,
	`%RESPONSE_TX_DURATION%`:                           `\d+`,
	`%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%`:            `\d+`,
	`%RESP(X-APP)%`:                                    `yes`,
	`%RESP(:STATUS)%`:                                  `201`,
	`%TRAILER(X-NONE)%`:                                "-\tnull",
	`%UPSTREAM_HOST%`:                                  `127\.0\.0\.1:\d+`,
	`%UPSTREAM_CLUSTER%`:                               `outbound\|5000\|\|helloworld`,
	`%UPSTREAM_CLUSTER_RAW%`:                           `outbound\|5000\|\|helloworld`,
	`%UPSTREAM_LOCAL_ADDRESS%`:                         `127\.0\.0\.1:\d+`,
	`%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%`:            `127\.0\.0\.1`,
	`%UPSTREAM_LOCAL_PORT%`:                            `\d+`,
	`%UPSTREAM_REMOTE_ADDRESS%`:                        `127\.0\.0\.1:\d+`,
	`%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%`:           `127\.0\.0\.1`,
	`%UPSTREAM_REMOTE_PORT%`:                           `\d+`,
	`%UPSTREAM_REQUEST_ATTEMPT_COUNT%`:                 "1\t1",
	`%DOWNSTREAM_LOCAL_ADDRESS%`:                       `127\.0\.0\.1:\d+`,
	`%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%`:          `127\.0\.0\.1`,
	`%DOWNSTREAM_LOCAL_PORT%`:                          `\d+`,
	`%DOWNSTREAM_REMOTE_ADDRESS%`:                      `10\.1\.2\.3:0`,
	`%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%`:         `10\.1\.2\.3`,
	`%DOWNSTREAM_REMOTE_PORT%`:                         "0",
	`%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%`:               `127\.0\.0\.1:\d+`,
	`%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%`:  `127\.0\.0\.1`,
	`%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`:            "-\tnull",
	`%REQUESTED_SERVER_NAME%`:                          "-\tnull",
	`%ROUTE_NAME%`:                                     `default`,
	`%VIRTUAL_CLUSTER_NAME%`:                           "-\tnull",
	`%FILTER_CHAIN_NAME%`:                              "-\tnull",
	`%CONNECTION_ID%`:                                  `\d+`,
	`%GRPC_STATUS%`:                                    "-\tnull",
	`%DYNAMIC_METADATA(a)%`:                            "-\tnull",
	`%FILTER_STATE(a)%`:                                "-\tnull",
	`%DOWNSTREAM_TLS_VERSION%`:                         "-\tnull",
	`%DOWNSTREAM_PEER_URI_SAN%`:                        "-\tnull",
	`%UPSTREAM_TLS_VERSION%`:                           "-\tnull",
	`%PATH%`:                                           `/old/p\?q=1&r=2`,
	`%PATH(NQ:PATH)%`:                                  `/new/p`,
	`%PATH(WQ:ORIG)%`:                                  `/old/p\?q=1&r=2`,
	`%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH)%`: `/old/p`,
	`%METADATA(ROUTE:a:b)%`:                            "-\tnull",
	`%ACCESS_LOG_TYPE%`:                                `DownstreamEnd`,
	`%UNIQUE_ID%`:                                      `[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`,
	`%UPSTREAM_FILTER_STATE(a)%`:                       "-\tnull",
	`%UPSTREAM_METADATA(a)%`:                           "-\tnull",
	`%CLUSTER_METADATA(a)%`:                            "-\tnull",
	`%DOWNSTREAM_LOCAL_URI_SAN%`:                       "-\tnull",
	`%DOWNSTREAM_PEER_IP_SAN%`:                         "-\tnull",
	`%DOWNSTREAM_PEER_FINGERPRINT_1%`:                  "-\tnull",
	`%EMIT_TIME%`:                                      `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`,
	`%TRACE_ID%`:                                       "-\tnull",
	`%GRPC_STATUS_NUMBER%`:                             "-\tnull",
	`%HOSTNAME%`:                                       `\S+`,
	`%QUERY_PARAM(r)%`:                                 `2`,
	`two: %REQ(:METHOD)% %RESPONSE_CODE% 100%%`:        `two: POST 201 100%`,
}

// TestAccessLog: every operator, in text and in JSON, gives what it gives in Envoy.
func TestAccessLog(t *testing.T) { engines(t, testAccessLog) }

func testAccessLog(t *testing.T, run func(yaml string)) {
	app := backend(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("X-App", "yes")
		w.WriteHeader(201)
		io.WriteString(w, "answer")
	})
	dir := t.TempDir()
	var text, object strings.Builder
	for op := range logged {
		q, _ := json.Marshal(op)
		text.WriteString("%%\n") // a line of "%" separates
		fmt.Fprintf(&text, "%s=%s\n", strings.ReplaceAll(op, "%", "%%"), op)
		fmt.Fprintf(&object, "%s: %s, ", q, q)
	}
	textFormat, _ := json.Marshal(text.String())
	logs := fmt.Sprintf(`
access_log:
- name: envoy.access_loggers.file
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
    path: %[1]s/text
    log_format: {text_format_source: {inline_string: %[2]s}, formatters: [%[4]s]}
- name: envoy.access_loggers.file
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
    path: %[1]s/json
    log_format: {json_format: {%[3]s}, formatters: [%[4]s]}
`, dir, textFormat, strings.TrimSuffix(object.String(), ", "),
		`{name: q, typed_config: {"@type": type.googleapis.com/envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery}}, {name: m, typed_config: {"@type": type.googleapis.com/envoy.extensions.formatter.metadata.v3.Metadata}}`)
	port := freePort(t)
	routes := `
- name: all
  domains: ["*"]
  routes:
  - match: {prefix: /old}
    name: default
    route: {cluster: "outbound|5000||helloworld", prefix_rewrite: /new}
`
	run(bootstrap(httpListener(port, routes, logs), strings.ReplaceAll(clusterYAML("CLUSTER", "", app), "CLUSTER", "outbound|5000||helloworld")))
	req, _ := http.NewRequest("POST", fmt.Sprintf("http://127.0.0.1:%d/old/p?q=1&r=2", port), strings.NewReader("body"))
	req.Host = "helloworld:5000"
	for k, v := range map[string]string{"User-Agent": "test/1", "X-Long": "abcdefgh", "X-Forwarded-For": "10.1.2.3", "X-Request-Id": "id-1"} {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	var lines, line []byte
	eventually(t, "both logs", func() bool {
		lines, _ = os.ReadFile(filepath.Join(dir, "text"))
		line, _ = os.ReadFile(filepath.Join(dir, "json"))
		return len(lines) > 0 && strings.HasSuffix(string(line), "}\n")
	})
	got := map[string]any{}
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatalf("the line is no JSON: %v: %s", err, line)
	}
	for op, want := range logged {
		inText, inJSON, different := strings.Cut(want, "\t")
		_, value, found := strings.Cut(string(lines), "%\n"+op+"=")
		value, _, _ = strings.Cut(value, "\n")
		if !found || !regexp.MustCompile(`^(?:`+inText+`)$`).MatchString(value) {
			t.Errorf("text: %s is %q, want %s", op, value, inText)
		}
		j, _ := json.Marshal(got[op])
		if !different {
			inJSON = `"?(?:` + inText + `)"?`
		}
		if !regexp.MustCompile(`^` + inJSON + `$`).MatchString(strings.ReplaceAll(string(j), `\u0026`, "&")) {
			t.Errorf("JSON: %s is %s, want %s", op, j, inJSON)
		}
	}
}

// TestLogSwitch: a connection logs its next request as the configuration that has come meanwhile says.
func TestLogSwitch(t *testing.T) {
	app := backend(t, func(http.ResponseWriter, *http.Request) {})
	dir := t.TempDir()
	port := freePort(t)
	with := func(file, format string) string {
		more := ""
		if format != "" {
			more = fmt.Sprintf(`
access_log:
- name: envoy.access_loggers.file
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
    path: %s/%s
    log_format: {%s}
`, dir, file, format)
		}
		return bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), more), clusterYAML("c", "", app))
	}
	read := func(file string) string {
		b, _ := os.ReadFile(filepath.Join(dir, file))
		return string(b)
	}
	r := start(t, with("", ""), nil)
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	get(t, client, url+"/nothing")
	r.apply(with("text", `text_format_source: {inline_string: "%REQ(:PATH)% %RESPONSE_CODE%\n"}`))
	get(t, client, url+"/text")
	r.apply(with("json", `json_format: {path: "%REQ(:PATH)%", code: "%RESPONSE_CODE%"}`))
	get(t, client, url+"/json")
	r.apply(with("", ""))
	get(t, client, url+"/nothing")
	eventually(t, "both lines", func() bool { return read("text") != "" && read("json") != "" })
	if got, want := read("text"), "/text 200\n"; got != want {
		t.Errorf("text: %q, want %q", got, want)
	}
	if got, want := read("json"), `{"code":200,"path":"/json"}`+"\n"; got != want {
		t.Errorf("JSON: %q, want %q", got, want)
	}
}
