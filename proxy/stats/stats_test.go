package stats

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
)

func store() *Store {
	s := NewStore(2, Local{Workload: "sleep", Namespace: "sample", App: "sleep", CanonicalService: "sleep", CanonicalRevision: "latest", Cluster: "cluster1"})
	c := s.Cluster("outbound|5000||helloworld")
	for shard := range 2 {
		c.Shard(shard).RqTotal.Add(3)
		c.Shard(shard).RqCodes.Inc(200)
		c.Shard(shard).RqTime.Observe(30)
	}
	c.Shard(0).RqCodes.Inc(503)
	c.Shard(0).CxActive.Add(2)
	c.Shard(1).CxActive.Dec()
	s.Cluster("idle")
	s.HTTP("outbound_0.0.0.0_5000").Shard(0).RqTotal.Inc()
	s.Process.Live.Set(1)
	k := &Key{Reporter: Source, Peer: "helloworld-v2;sample;helloworld;v2;cluster2", PeerPrincipal: "spiffe://cluster.local/ns/sample/sa/default",
		OwnPrincipal: "spiffe://cluster.local/ns/sample/sa/sleep", Host: "helloworld.sample.svc.cluster.local", Name: "helloworld", Namespace: "sample", Protocol: "http", Status: 200}
	for shard := range 2 {
		r := s.Istio.Requests(shard, k)
		r.Total.Inc()
		r.Milliseconds.Observe(7)
	}
	down := &Key{Reporter: Destination, PeerPrincipal: "spiffe://cluster.local/ns/other/sa/x", Protocol: "tcp", Flags: accesslog.NoHealthyUpstream, MTLS: true}
	s.Istio.Connections(0, down).Opened.Inc()
	return s
}

func TestText(t *testing.T) {
	var b bytes.Buffer
	if err := store().WriteText(&b, Query{Filter: regexp.MustCompile(`^cluster\.|^http|^server.live`)}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"cluster.outbound|5000||helloworld.upstream_rq_total: 6\n", "cluster.outbound|5000||helloworld.upstream_rq_2xx: 2\n",
		"cluster.outbound|5000||helloworld.upstream_rq_200: 2\n", "cluster.outbound|5000||helloworld.upstream_rq_503: 1\n",
		"cluster.outbound|5000||helloworld.upstream_cx_active: 1\n", "cluster.idle.upstream_rq_total: 0\n",
		"http.outbound_0.0.0.0_5000.downstream_rq_total: 1\n", "server.live: 1\n",
		"cluster.outbound|5000||helloworld.upstream_rq_time: P0(nan,25)", "cluster.idle.upstream_rq_time: No recorded values\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	b.Reset()
	if err := store().WriteText(&b, Query{UsedOnly: true, Type: "Counters"}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "idle") || strings.Contains(b.String(), "cx_active") || strings.Contains(b.String(), ": 0\n") {
		t.Errorf("used counters only:\n%s", b.String())
	}
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	if err := store().WriteJSON(&b, Query{UsedOnly: true}); err != nil {
		t.Fatal(err)
	}
	var out struct {
		Stats []struct {
			Name       string
			Value      int64
			Histograms *struct {
				Computed []struct{ Name string } `json:"computed_quantiles"`
			}
		}
	}
	if err := json.Unmarshal(b.Bytes(), &out); err != nil {
		t.Fatal(err)
	}
	last := out.Stats[len(out.Stats)-1]
	if last.Histograms == nil || len(last.Histograms.Computed) != 1 {
		t.Errorf("histograms: %s", b.String())
	}
}

// TestPrometheus reads what is written with Prometheus' own parser.
func TestPrometheus(t *testing.T) {
	var b bytes.Buffer
	if err := store().WritePrometheus(&b, Query{}); err != nil {
		t.Fatal(err)
	}
	p := expfmt.NewTextParser(model.LegacyValidation)
	fams, err := p.TextToMetricFamilies(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatalf("%v\n%s", err, b.String())
	}
	for _, want := range []string{
		`envoy_cluster_upstream_rq_total{envoy_cluster_name="outbound|5000||helloworld"} 6`,
		`envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="outbound|5000||helloworld"} 2`,
		`envoy_cluster_upstream_rq{envoy_response_code="503",envoy_cluster_name="outbound|5000||helloworld"} 1`,
		`envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="outbound|5000||helloworld",le="50"} 2`,
		`envoy_server_live{} 1`,
		`source_workload="sleep"`, `destination_workload="helloworld-v2"`, `destination_cluster="cluster2"`,
		`source_workload_namespace="other"`, `connection_security_policy="mutual_tls"`,
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in\n%s", want, b.String())
		}
	}
	if got := fams["istio_requests_total"].GetMetric()[0].GetCounter().GetValue(); got != 2 {
		t.Errorf("istio_requests_total is %v", got)
	}
	if strings.Contains(b.String(), `"idle"`) {
		t.Error("a cluster that was never used is shown")
	}
}

func TestKeep(t *testing.T) {
	s := store()
	c := s.Cluster("outbound|5000||helloworld")
	s.Keep(Names{Clusters: map[string]bool{"outbound|5000||helloworld": true}})
	if s.Cluster("outbound|5000||helloworld") != c {
		t.Error("statistics of a cluster that stays are new")
	}
	var b bytes.Buffer
	if err := s.WriteText(&b, Query{}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "cluster.idle") || strings.Contains(b.String(), "http.") {
		t.Errorf("dropped scopes are shown:\n%s", b.String())
	}
}

// Peers are bounded: an attacker with many identities does not fill the memory.
func TestSeriesBound(t *testing.T) {
	x := newIstio(1, Local{})
	for i := range maxSeries + 100 {
		x.Requests(0, &Key{Peer: string(rune(i))}).Total.Inc()
	}
	if n := len(x.shards[0].requests); n > maxSeries+1 {
		t.Errorf("%d series", n)
	}
}

func TestCodesConcurrently(t *testing.T) {
	var c Codes
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 1000 {
				c.Inc(200 + i%10)
			}
		}()
	}
	wg.Wait()
	var total uint64
	seen := map[uint32]bool{}
	for i := range c.list {
		if code := c.list[i].code.Load(); code != 0 {
			if seen[code] {
				t.Errorf("%d is counted twice", code)
			}
			seen[code] = true
		}
		total += c.list[i].n.Load()
	}
	if total != 4000 || c.classes[2].Load() != 4000 {
		t.Errorf("counted %d and %d, want 4000", total, c.classes[2].Load())
	}
}

func BenchmarkRequest(b *testing.B) {
	s := store()
	c := s.Cluster("outbound|5000||helloworld").Shard(0)
	k := &Key{Peer: "helloworld-v2;sample;helloworld;v2;cluster2", PeerPrincipal: "spiffe://cluster.local/ns/sample/sa/default", Host: "helloworld.sample.svc.cluster.local", Name: "helloworld", Namespace: "sample", Protocol: "http", Status: 200}
	b.ReportAllocs()
	for b.Loop() {
		c.RqTotal.Inc()
		c.RqCodes.Inc(200)
		c.RqTime.Observe(3)
		r := s.Istio.Requests(0, k)
		r.Total.Inc()
		r.Milliseconds.Observe(3)
		r.RequestBytes.Observe(100)
		r.ResponseBytes.Observe(1000)
	}
}
