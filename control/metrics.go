package control

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/carrick-mesh/carrick/kube"
	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/schema"
)

// metrics has istiod's names.
type metrics struct {
	pushTime *prometheus.HistogramVec
	triggers *prometheus.CounterVec
	services prometheus.Gauge
	virtual  prometheus.Gauge
}

func newMetrics() *metrics {
	return &metrics{
		pushTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "pilot_xds_push_time",
			Help: "Seconds that compiling and publishing for all proxies takes.", Buckets: []float64{.001, .003, .01, .03, .1, .3, 1, 3, 10}}, []string{"type"}),
		triggers: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pilot_push_triggers",
			Help: "Events that a push was made for, by kind of object."}, []string{"type"}),
		services: prometheus.NewGauge(prometheus.GaugeOpts{Name: "pilot_services", Help: "Services known to the control plane."}),
		virtual:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "pilot_virt_services", Help: "Virtual services known to the control plane."}),
	}
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.pushTime, m.triggers, m.services, m.virtual}
}

func (m *metrics) trigger(es []mesh.Event) {
	for _, e := range es {
		m.triggers.WithLabelValues(e.About().Kind).Inc()
	}
}

func (m *metrics) pushed(took time.Duration, s *mesh.Snapshot) {
	m.pushTime.WithLabelValues("all").Observe(took.Seconds())
	n := 0
	for _, l := range s.Leaves() {
		n += len(l.Hosts)
	}
	m.services.Set(float64(n))
	m.virtual.Set(float64(s.VirtualServices().Len()))
}

// clusterMetrics tells where the clusters stand when it is asked.
type clusterMetrics struct{ *Control }

var (
	managedClusters = prometheus.NewDesc("istiod_managed_clusters", "Number of clusters managed by istiod.", []string{"cluster_type"}, nil)
	syncStatus      = prometheus.NewDesc("istiod_remote_cluster_sync_status", "1 for the status that a remote cluster has.", []string{"cluster_id", "status"}, nil)
)

// Describe implements prometheus.Collector.
func (clusterMetrics) Describe(ch chan<- *prometheus.Desc) { ch <- managedClusters; ch <- syncStatus }

// Collect implements prometheus.Collector.
func (m clusterMetrics) Collect(ch chan<- prometheus.Metric) {
	all := m.clusters.Status()
	ch <- prometheus.MustNewConstMetric(managedClusters, prometheus.GaugeValue, 1, "local")
	ch <- prometheus.MustNewConstMetric(managedClusters, prometheus.GaugeValue, float64(len(all)-1), "remote")
	told := map[string]bool{}
	for _, s := range all[1:] {
		if told[s.ID] {
			continue // a second secret for it
		}
		told[s.ID] = true
		for _, x := range []kube.Status{kube.Synced, kube.Syncing, kube.Timeout, kube.Stale, kube.Failed} {
			v := 0.0
			if s.Status == x {
				v = 1
			}
			ch <- prometheus.MustNewConstMetric(syncStatus, prometheus.GaugeValue, v, s.ID, string(x))
		}
	}
}

// inertMetrics counts the objects without effect when it is asked.
type inertMetrics struct{ *Control }

var withoutEffect = prometheus.NewDesc("carrick_objects_without_effect",
	"Objects of users that have no effect, for their kind is not implemented, by kind.", []string{"kind"}, nil)

// Describe implements prometheus.Collector.
func (inertMetrics) Describe(ch chan<- *prometheus.Desc) { ch <- withoutEffect }

// Collect implements prometheus.Collector.
func (m inertMetrics) Collect(ch chan<- prometheus.Metric) {
	objects := map[mesh.Key]bool{} // an object may have several findings
	for _, f := range m.Snapshot().WithoutEffect() {
		objects[f.Object] = true
	}
	counts := map[string]int{}
	for k := range objects {
		counts[k.Kind]++
	}
	for _, k := range schema.Kinds() {
		if !k.Implemented {
			ch <- prometheus.MustNewConstMetric(withoutEffect, prometheus.GaugeValue, float64(counts[k.Name()]), k.Name())
		}
	}
}
