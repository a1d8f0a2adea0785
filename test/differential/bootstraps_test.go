package differential

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/carrick-mesh/carrick/test/envoytest"
)

const goodBootstrap = `
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
static_resources:
  listeners:
  - name: l
    address: {socket_address: {address: 127.0.0.1, port_value: 10000}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: h
          http_filters: [{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
          route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: up}}]}]}
  - name: t
    address: {socket_address: {address: 127.0.0.1, port_value: 10443}}
    filter_chains:
    - filters: [{name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: up}}]
      transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context: {tls_certificates: [{certificate_chain: {filename: "@PKI@/server.pem"}, private_key: {filename: "@PKI@/server.key"}}]}
  clusters:
  - name: up
    connect_timeout: 1s
    type: STATIC
    load_assignment: {cluster_name: up, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9001}}}}]}]}
`

// Places of the good bootstrap.
const (
	atManager = "static_resources.listeners.0.filter_chains.0.filters.0.typed_config"
	atRoute   = atManager + ".route_config.virtual_hosts.0.routes.0"
	atHost    = atManager + ".route_config.virtual_hosts.0"
	atLayer   = "static_resources.listeners.0"
	atTLS     = "static_resources.listeners.1.filter_chains.0.transport_socket.typed_config.common_tls_context"
	atCert    = atTLS + ".tls_certificates.0"
	atCluster = "static_resources.clusters.0"
	atTarget  = atCluster + ".load_assignment.endpoints.0.lb_endpoints.0.endpoint.address.socket_address"
)

// edits are bootstraps with one fault each: a place, and the JSON to put there; "-" takes it away, "+"
// before a value appends it to a list.
var edits = []struct{ name, place, value string }{
	{"good", "admin", `{"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9901}}}`},
	{"unknown field at the top", "frobnicate", `1`},
	{"unknown field in a filter", atManager + ".frobnicate", `1`},
	{"unknown field in a cluster", atCluster + ".frobnicate", `1`},
	{"unknown field in a route", atRoute + ".frobnicate", `{}`},
	{"unknown extension type", atManager + ".http_filters.0.typed_config", `{"@type": "type.googleapis.com/no.such.Type"}`},
	{"port is a word", atLayer + ".address.socket_address.port_value", `"eighty"`},
	{"timeout is a list", atCluster + ".connect_timeout", `[1]`},
	{"a list is a map", "static_resources.clusters", `{"a": 1}`},
	{"a message is a string", atLayer + ".address", `"127.0.0.1:80"`},
	{"duration without unit", atCluster + ".connect_timeout", `"1"`},
	{"negative duration", atCluster + ".connect_timeout", `"-1s"`},
	{"zero connect_timeout", atCluster + ".connect_timeout", `"0s"`},
	{"negative route timeout", atRoute + ".route.timeout", `"-1s"`},
	{"negative idle timeout", atManager + ".common_http_protocol_options", `{"idle_timeout": "-1s"}`},
	{"negative stream idle timeout", atManager + ".stream_idle_timeout", `"-1s"`},
	{"port 70000", atLayer + ".address.socket_address.port_value", `70000`},
	{"port -1", atLayer + ".address.socket_address.port_value", `-1`},
	{"address is a name", atLayer + ".address.socket_address.address", `"localhost"`},
	{"no address", atLayer + ".address", `-`},
	{"bad regex", atRoute + ".match", `{"safe_regex": {"regex": "a(b"}}`},
	{"regex that closes the anchor", atRoute + ".match", `{"safe_regex": {"regex": "/a)|(/b"}}`},
	{"regex with backreference", atRoute + ".match", `{"safe_regex": {"regex": "(a)\\1"}}`},
	{"empty regex", atRoute + ".match", `{"safe_regex": {"regex": ""}}`},
	{"regex substitution of a group that is not there", atRoute + ".route.regex_rewrite", `{"pattern": {"regex": "a"}, "substitution": "\\9"}`},
	{"empty match", atRoute + ".match", `{}`},
	{"no match", atRoute + ".match", `-`},
	{"route without action", atRoute + ".route", `-`},
	{"route to a cluster that is not there", atRoute + ".route.cluster", `"nope"`},
	{"route to no cluster", atRoute + ".route", `{}`},
	{"weighted cluster that is not there", atRoute + ".route", `{"weighted_clusters": {"clusters": [{"name": "up", "weight": 1}, {"name": "nope", "weight": 1}]}}`},
	{"weights 0", atRoute + ".route", `{"weighted_clusters": {"clusters": [{"name": "up", "weight": 0}]}}`},
	{"no weighted clusters", atRoute + ".route", `{"weighted_clusters": {"clusters": []}}`},
	{"mirror to a cluster that is not there", atRoute + ".route.request_mirror_policies", `[{"cluster": "nope"}]`},
	{"no domains", atHost + ".domains", `[]`},
	{"empty domain", atHost + ".domains", `[""]`},
	{"domain with a star inside", atHost + ".domains", `["a.*.b"]`},
	{"duplicate domain", atManager + ".route_config.virtual_hosts", `+{"name": "w", "domains": ["*"], "routes": []}`},
	{"duplicate virtual host name", atManager + ".route_config.virtual_hosts", `+{"name": "v", "domains": ["x"], "routes": []}`},
	{"virtual host without a name", atHost + ".name", `-`},
	{"router not last", atManager + ".http_filters", `+{"name": "cors", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}}`},
	{"no router", atManager + ".http_filters", `[]`},
	{"no stat_prefix", atManager + ".stat_prefix", `-`},
	{"no route_config", atManager + ".route_config", `-`},
	{"duplicate listener name", "static_resources.listeners", `+{"name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 10009}}, "filter_chains": [{"filters": [{"name": "tcp", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "t", "cluster": "up"}}]}]}`},
	{"duplicate listener address", "static_resources.listeners", `+{"name": "l2", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 10000}}, "filter_chains": [{"filters": [{"name": "tcp", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "t", "cluster": "up"}}]}]}`},
	{"duplicate cluster", "static_resources.clusters", `+{"name": "up", "connect_timeout": "1s", "type": "STATIC"}`},
	{"cluster without a name", atCluster + ".name", `-`},
	{"no endpoints", atCluster + ".load_assignment.endpoints", `[]`},
	{"endpoint port 70000", atTarget + ".port_value", `70000`},
	{"endpoint name in a STATIC cluster", atTarget + ".address", `"nowhere.example"`},
	{"lb_policy unknown", atCluster + ".lb_policy", `"FASTEST"`},
	{"type unknown", atCluster + ".type", `"MAGIC"`},
	{"certificate file missing", atCert + ".certificate_chain", `{"filename": "/nonexistent.pem"}`},
	{"certificate broken", atCert + ".certificate_chain", `{"filename": "@PKI@/bad.pem"}`},
	{"certificate empty", atCert + ".certificate_chain", `{"filename": "@PKI@/empty.pem"}`},
	{"certificate rubbish", atCert + ".certificate_chain", `{"inline_string": "rubbish"}`},
	{"key of another certificate", atCert + ".private_key", `{"filename": "@PKI@/client.key"}`},
	{"key file missing", atCert + ".private_key", `{"filename": "/nonexistent.key"}`},
	{"key is a certificate", atCert + ".private_key", `{"filename": "@PKI@/server.pem"}`},
	{"no key", atCert + ".private_key", `-`},
	{"no certificate", atTLS + ".tls_certificates", `-`},
	{"trusted_ca", atTLS + ".validation_context", `{"trusted_ca": {"filename": "@PKI@/root.pem"}}`},
	{"trusted_ca broken", atTLS + ".validation_context", `{"trusted_ca": {"filename": "@PKI@/bad.pem"}}`},
	{"trusted_ca missing", atTLS + ".validation_context", `{"trusted_ca": {"filename": "/nonexistent"}}`},
	{"trusted_ca empty", atTLS + ".validation_context", `{"trusted_ca": {"filename": "@PKI@/empty.pem"}}`},
	{"names without trusted_ca", atTLS + ".validation_context", `{"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": "a"}}]}`},
	{"crl", atTLS + ".validation_context", `{"trusted_ca": {"filename": "@PKI@/root.pem"}, "crl": {"filename": "@PKI@/crl.pem"}}`},
	{"crl broken", atTLS + ".validation_context", `{"trusted_ca": {"filename": "@PKI@/root.pem"}, "crl": {"filename": "@PKI@/bad.pem"}}`},
	{"crl missing", atTLS + ".validation_context", `{"trusted_ca": {"filename": "@PKI@/root.pem"}, "crl": {"filename": "/nonexistent"}}`},
	{"crl without trusted_ca", atTLS + ".validation_context", `{"crl": {"filename": "@PKI@/crl.pem"}}`},
	{"spki rubbish", atTLS + ".validation_context", `{"trusted_ca": {"filename": "@PKI@/root.pem"}, "verify_certificate_spki": ["xyz"]}`},
	{"hash rubbish", atTLS + ".validation_context", `{"trusted_ca": {"filename": "@PKI@/root.pem"}, "verify_certificate_hash": ["xyz"]}`},
	{"cipher unknown", atTLS + ".tls_params", `{"cipher_suites": ["NOPE"]}`},
	{"curve unknown", atTLS + ".tls_params", `{"ecdh_curves": ["NOPE"]}`},
	{"TLS 1.0", atTLS + ".tls_params", `{"tls_minimum_protocol_version": "TLSv1_0"}`},
	{"TLS minimum above maximum", atTLS + ".tls_params", `{"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_2"}`},
	{"upstream certificate broken", atCluster + ".transport_socket", `{"name": "tls", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", "common_tls_context": {"tls_certificates": [{"certificate_chain": {"filename": "@PKI@/bad.pem"}, "private_key": {"filename": "@PKI@/client.key"}}]}}}`},
	{"upstream trusted_ca broken", atCluster + ".transport_socket", `{"name": "tls", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", "common_tls_context": {"validation_context": {"trusted_ca": {"filename": "@PKI@/bad.pem"}}}}}`},
	{"auto_sni_san_validation without validation", atCluster + ".transport_socket", `{"name": "tls", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", "auto_sni_san_validation": true}}`},
	{"access log to a folder that is not there", atManager + ".access_log", `[{"name": "f", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/nonexistent/x.log"}}]`},
	{"access log without a path", atManager + ".access_log", `[{"name": "f", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"}}]`},
	{"access log operator unknown", atManager + ".access_log", `[{"name": "f", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/dev/null", "log_format": {"text_format_source": {"inline_string": "%NOPE%"}}}}]`},
	{"header mutation of a bad name", atRoute + ".request_headers_to_add", `[{"header": {"key": "a b", "value": "x"}}]`},
	{"header mutation of no name", atRoute + ".request_headers_to_add", `[{"header": {"key": "", "value": "x"}}]`},
	{"header mutation with CR LF", atRoute + ".request_headers_to_add", `[{"header": {"key": "a", "value": "x\r\ny: z"}}]`},
	{"host header removed", atRoute + ".request_headers_to_remove", `["host"]`},
	{"direct response status 99", atRoute, `{"match": {"prefix": "/"}, "direct_response": {"status": 99}}`},
	{"direct response status 600", atRoute, `{"match": {"prefix": "/"}, "direct_response": {"status": 600}}`},
	{"direct response body of 10 KB", atRoute, `{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "` + strings.Repeat("x", 10000) + `"}}}`},
	{"max_concurrent_streams 0", atManager + ".http2_protocol_options", `{"max_concurrent_streams": 0}`},
	{"stream window 1", atManager + ".http2_protocol_options", `{"initial_stream_window_size": 1}`},
	{"connection window 1", atManager + ".http2_protocol_options", `{"initial_connection_window_size": 1}`},
	{"stream window 2^31", atManager + ".http2_protocol_options", `{"initial_stream_window_size": 2147483648}`},
	{"max_request_headers_kb 0", atManager + ".max_request_headers_kb", `0`},
	{"max_request_headers_kb 100000", atManager + ".max_request_headers_kb", `100000`},
	{"max_headers_count 0", atManager + ".common_http_protocol_options", `{"max_headers_count": 0}`},
	{"filter chain match twice the same", atLayer + ".filter_chains", `+{"filters": [{"name": "tcp", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "t", "cluster": "up"}}]}`},
	{"server_names *", "static_resources.listeners.1.filter_chains.0.filter_chain_match", `{"server_names": ["*"]}`},
	{"server_names a*", "static_resources.listeners.1.filter_chains.0.filter_chain_match", `{"server_names": ["a*.x"]}`},
	{"no filter", atLayer + ".filter_chains.0.filters", `[]`},
	{"no filter chains", atLayer + ".filter_chains", `[]`},
	{"circuit breaker priority 9", atCluster + ".circuit_breakers", `{"thresholds": [{"priority": 9}]}`},
	{"retry_on unknown", atRoute + ".route.retry_policy", `{"retry_on": "sometimes"}`},
	{"retry back-off without base", atRoute + ".route.retry_policy", `{"retry_on": "5xx", "retry_back_off": {}}`},
	{"retry back-off maximum below base", atRoute + ".route.retry_policy", `{"retry_on": "5xx", "retry_back_off": {"base_interval": "1s", "max_interval": "0.1s"}}`},
	{"redirect of scheme and https", atRoute, `{"match": {"prefix": "/"}, "redirect": {"path_redirect": "a\r\nb"}}`},
	{"prefix_rewrite and regex_rewrite", atRoute + ".route", `{"cluster": "up", "prefix_rewrite": "/a", "regex_rewrite": {"pattern": {"regex": "a"}, "substitution": "b"}}`},
	{"fault of status 100", atRoute + ".typed_per_filter_config", `{"envoy.filters.http.fault": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault", "abort": {"http_status": 100, "percentage": {"numerator": 100}}}}`},
	{"tcp_proxy without a cluster", "static_resources.listeners.1.filter_chains.0.filters.0.typed_config.cluster", `-`},
	{"tcp_proxy without stat_prefix", "static_resources.listeners.1.filter_chains.0.filters.0.typed_config.stat_prefix", `-`},
	{"tcp_proxy to a cluster that is not there", "static_resources.listeners.1.filter_chains.0.filters.0.typed_config.cluster", `"nope"`},
}

var texts = map[string]string{
	"not YAML": "a: [", "a list": "- a\n", "JSON cut off": `{"static_resources": {"listeners": [`, "duplicate key": "admin: {}\nadmin: {}\n", "NUL bytes": "\x00\x00\x00",
}

// edit puts a value at a place of a document.
func edit(doc any, place []string, value string) any {
	if len(place) == 0 {
		if rest, ok := strings.CutPrefix(value, "+"); ok {
			var v any
			must(json.Unmarshal([]byte(rest), &v))
			return append(doc.([]any), v)
		}
		var v any
		must(json.Unmarshal([]byte(value), &v))
		return v
	}
	switch d := doc.(type) {
	case []any:
		var i int
		fmt.Sscan(place[0], &i)
		d[i] = edit(d[i], place[1:], value)
	case map[string]any:
		if value == "-" && len(place) == 1 {
			delete(d, place[0])
			return d
		}
		d[place[0]] = edit(d[place[0]], place[1:], value)
	}
	return doc
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// TestBootstraps gives both proxies bootstraps with one fault each: what one refuses the other must
// refuse, but for what a rule lists. A refusal of the built-in proxy names the field.
func TestBootstraps(t *testing.T) {
	program := envoytest.Program(t)
	p := newPKI(t)
	docs := map[string]string{}
	place := map[string]string{}
	for _, e := range edits {
		var doc any
		must(yaml.Unmarshal([]byte(goodBootstrap), &doc))
		b, err := json.Marshal(edit(doc, strings.Split(e.place, "."), e.value))
		must(err)
		docs[e.name], place[e.name] = strings.ReplaceAll(string(b), "@PKI@", p.dir), e.place
	}
	for n, text := range texts {
		docs[n] = text
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, 2)
	for name, doc := range docs {
		slots <- struct{}{}
		wg.Add(1)
		go func() {
			defer func() { <-slots; wg.Done() }()
			file := filepath.Join(p.dir, fmt.Sprintf("%x.yaml", name))
			must(os.WriteFile(file, []byte(doc), 0o600))
			out, envoyErr := exec.Command(program, "-c", file, "--mode", "validate", "--disable-hot-restart", "-l", "critical", "--concurrency", "1").CombinedOutput()
			_, err := compile([]byte(doc))
			mu.Lock()
			defer mu.Unlock()
			verdict := func(err error) string {
				if err != nil {
					return "refused"
				}
				return "taken"
			}
			if d := fmt.Sprintf("%s -> %s", verdict(envoyErr), verdict(err)); d == "taken -> refused" || d == "refused -> taken" {
				if left := unexplained("bootstrap: "+name, []string{d}, true); len(left) > 0 {
					t.Errorf("%s: %s\n\tEnvoy: %.300s\n\tCarrick: %v", name, d, out, err)
				}
			}
			if at := place[name]; err != nil && at != "" && !namesField(err.Error(), at) {
				t.Errorf("%s: the error does not name the field: %v", name, err)
			}
			if err != nil && strings.Contains(err.Error(), "PRIVATE KEY") {
				t.Errorf("%s: the error has a key: %v", name, err)
			}
		}()
	}
	wg.Wait()
	for _, r := range rules {
		if r.used == 0 && strings.HasPrefix(r.cases, "bootstrap: ") {
			t.Errorf("the rule %q is not needed: no bootstrap differs so", r.subject)
		}
	}
	t.Logf("%d bootstraps", len(docs))
}

// namesField reports whether an error says where the fault is: by the last names of the place, or of the
// message around it.
func namesField(text, place string) bool {
	var names []string
	for _, n := range strings.Split(place, ".") {
		if strings.Trim(n, "0123456789") != "" {
			names = append(names, n)
		}
	}
	for i := len(names) - 1; i >= 0 && i >= len(names)-3; i-- {
		if strings.Contains(text, names[i]) {
			return true
		}
	}
	return strings.Contains(text, `listener "`) || strings.Contains(text, `cluster "`)
}
