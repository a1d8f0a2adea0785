package stats

import (
	"bufio"
	"io"
	"sort"
	"strconv"
	"strings"
)

// label is a Prometheus label.
type label struct{ name, value string }

// series is one series of a metric.
type series struct {
	labels []label
	n      int64
	dist   *distribution
}

// metric is a metric with its series.
type metric struct {
	name   string
	kind   kind
	series []series
}

// WritePrometheus writes the text format 0.0.4: Envoy's statistics as envoy_… with the scope as a
// label, and Istio's metrics. Clusters and the like that were never used are left out: a proxy knows
// thousands. q.Filter applies to Envoy's names as in /stats.
func (s *Store) WritePrometheus(w io.Writer, q Query) error {
	byName := map[string]*metric{}
	at := func(name string, k kind) *metric {
		m := byName[name]
		if m == nil {
			m = &metric{name: name, kind: k}
			byName[name] = m
		}
		return m
	}
	for _, x := range s.read(false) {
		if !q.takes(&x) {
			continue
		}
		name := "envoy_"
		var ls []label
		if x.scope.prefix != "" {
			name += x.scope.prefix + "_"
			ls = append(ls, label{scopeLabels[x.scope.prefix], x.scope.name})
		}
		if x.label != "" {
			ls = append([]label{{x.label, x.value}}, ls...)
		}
		m := at(name+metricName(x.name), x.kind)
		m.series = append(m.series, series{ls, x.n, x.dist})
	}
	for _, m := range s.Istio.read() {
		if q.Filter == nil || q.Filter.MatchString(m.name) {
			byName[m.name] = m
		}
	}
	names := make([]string, 0, len(byName))
	for n := range byName {
		names = append(names, n)
	}
	sort.Strings(names)
	b := bufio.NewWriterSize(w, 16<<10)
	for _, n := range names {
		byName[n].write(b)
	}
	return b.Flush()
}

func metricName(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == ':' {
			return r
		}
		return '_'
	}, s)
}

var kindNames = map[kind]string{counter: "counter", gauge: "gauge", histogram: "histogram"}

func (m *metric) write(b *bufio.Writer) {
	b.WriteString("# TYPE " + m.name + " " + kindNames[m.kind] + "\n")
	for i := range m.series {
		x := &m.series[i]
		if x.dist == nil {
			writeSample(b, m.name, x.labels, "", strconv.FormatInt(x.n, 10))
			continue
		}
		var below uint64
		for j, n := range x.dist.buckets {
			below += n
			le := "+Inf"
			if j < len(bounds) {
				le = strconv.FormatFloat(bounds[j], 'f', -1, 64)
			}
			writeSample(b, m.name+"_bucket", x.labels, le, strconv.FormatUint(below, 10))
		}
		writeSample(b, m.name+"_sum", x.labels, "", strconv.FormatFloat(x.dist.sum, 'g', -1, 64))
		writeSample(b, m.name+"_count", x.labels, "", strconv.FormatUint(below, 10))
	}
}

// escaper escapes label values.
var escaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func writeSample(b *bufio.Writer, name string, ls []label, le, value string) {
	b.WriteString(name)
	b.WriteByte('{')
	for i, l := range ls {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(l.name + `="` + escaper.Replace(l.value) + `"`)
	}
	if le != "" {
		if len(ls) > 0 {
			b.WriteByte(',')
		}
		b.WriteString(`le="` + le + `"`)
	}
	b.WriteString("} " + value + "\n")
}
