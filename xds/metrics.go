package xds

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/carrick-mesh/carrick/resource"
)

// metrics has istiod's names.
type metrics struct {
	clients  *prometheus.GaugeVec
	pushes   *prometheus.CounterVec
	rejects  *prometheus.CounterVec
	byType   map[string]prometheus.Counter
	refused  prometheus.Counter
	converge prometheus.Histogram
}

func newMetrics() *metrics {
	m := &metrics{
		clients: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "pilot_xds",
			Help: "Number of endpoints connected to this pilot using XDS."}, []string{"version"}),
		pushes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pilot_xds_pushes",
			Help: "Messages sent to proxies, by type of resource."}, []string{"type"}),
		rejects: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pilot_total_xds_rejects",
			Help: "Total number of XDS responses from pilot rejected by proxy."}, []string{"type"}),
		byType: map[string]prometheus.Counter{},
		refused: prometheus.NewCounter(prometheus.CounterOpts{Name: "pilot_xds_refused_streams",
			Help: "Streams refused because the client is not who its Node says, or nobody known."}),
		converge: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "pilot_proxy_convergence_time",
			Help:    "Delay in seconds between a new configuration and its being sent to a proxy.",
			Buckets: []float64{.01, .05, .1, .5, 1, 3, 5, 10, 20, 30}}),
	}
	for _, t := range []string{resource.ClusterType, resource.EndpointType, resource.ListenerType, resource.RouteType} {
		n := short(t)
		m.byType[t] = prometheus.NewCounter(prometheus.CounterOpts{Name: "pilot_xds_" + n + "_reject",
			Help: "Pilot rejected " + strings.ToUpper(n) + " configs."})
	}
	return m
}

func (m *metrics) connected(c *Client, n float64) {
	v := ""
	if f := c.Node.Metadata.GetFields()["ISTIO_VERSION"]; f != nil {
		v = f.GetStringValue()
	}
	if len(v) > 64 {
		v = "other" // it is the client's word
	}
	m.clients.WithLabelValues(v).Add(n)
}

func (m *metrics) pushed(typeURL string) { m.pushes.WithLabelValues(short(typeURL)).Inc() }

func (m *metrics) rejected(typeURL string) {
	m.rejects.WithLabelValues(short(typeURL)).Inc()
	if c := m.byType[typeURL]; c != nil {
		c.Inc()
	}
}

func (m *metrics) collectors() []prometheus.Collector {
	cs := []prometheus.Collector{m.clients, m.pushes, m.rejects, m.refused, m.converge}
	for _, c := range m.byType {
		cs = append(cs, c)
	}
	return cs
}

// Describe implements prometheus.Collector.
func (s *Server) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range s.metrics.collectors() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector: pilot_xds and the like, as istiod names them.
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	for _, c := range s.metrics.collectors() {
		c.Collect(ch)
	}
}

// short returns Istio's name of a type: cds, lds, ...; the end of its URL for others. Types come
// from clients, so others share one name in metrics.
func short(typeURL string) string {
	switch typeURL {
	case resource.ClusterType:
		return "cds"
	case resource.EndpointType:
		return "eds"
	case resource.ListenerType:
		return "lds"
	case resource.RouteType:
		return "rds"
	case resource.SecretType:
		return "sds"
	case resource.EcdsType:
		return "ecds"
	}
	return "other"
}
