package stats

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"regexp"
	"sort"
	"strconv"
)

// Query says which statistics to write. The zero value is all.
type Query struct {
	UsedOnly bool
	Filter   *regexp.Regexp // of the full name
	Type     string         // "Counters", "Gauges", "Histograms"; empty: all
}

func (q *Query) takes(s *sample) bool {
	if q.UsedOnly && !s.used() {
		return false
	}
	switch q.Type {
	case "Counters":
		if s.kind != counter {
			return false
		}
	case "Gauges":
		if s.kind != gauge {
			return false
		}
	case "Histograms":
		if s.kind != histogram {
			return false
		}
	}
	return q.Filter == nil || q.Filter.MatchString(s.full())
}

// quantiles are the ones of Envoy's /stats.
var quantiles = []float64{0, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100}

// WriteText writes "NAME: VALUE" lines as Envoy's /stats: counters and gauges by name, then histograms.
func (s *Store) WriteText(w io.Writer, q Query) error {
	plain, dists := s.sorted(q)
	b := bufio.NewWriter(w)
	for i := range plain {
		fmt.Fprintf(b, "%s: %d\n", plain[i].full(), plain[i].n)
	}
	for i := range dists {
		fmt.Fprintf(b, "%s:", dists[i].full())
		if !dists[i].used() {
			b.WriteString(" No recorded values\n")
			continue
		}
		for _, p := range quantiles {
			fmt.Fprintf(b, " P%s(nan,%s)", number(p), number(dists[i].dist.quantile(p/100)))
		}
		b.WriteByte('\n')
	}
	return b.Flush()
}

func (s *Store) sorted(q Query) (plain, dists []sample) {
	for _, x := range s.read(true) {
		switch {
		case !q.takes(&x):
		case x.dist != nil:
			dists = append(dists, x)
		default:
			plain = append(plain, x)
		}
	}
	for _, l := range [][]sample{plain, dists} {
		sort.SliceStable(l, func(i, j int) bool { return l[i].full() < l[j].full() })
	}
	return plain, dists
}

func number(f float64) string {
	if math.IsNaN(f) {
		return "nan"
	}
	return strconv.FormatFloat(f, 'g', 6, 64)
}

// WriteJSON writes what WriteText does, in the form of Envoy's /stats?format=json.
func (s *Store) WriteJSON(w io.Writer, q Query) error {
	type plainStat struct {
		Name  string `json:"name"`
		Value int64  `json:"value"`
	}
	type quantile struct {
		Cumulative *float64 `json:"cumulative"`
		Interval   *float64 `json:"interval"`
	}
	type computed struct {
		Name   string     `json:"name"`
		Values []quantile `json:"values"`
	}
	plain, dists := s.sorted(q)
	out := []any{}
	for i := range plain {
		out = append(out, plainStat{plain[i].full(), plain[i].n})
	}
	if len(dists) > 0 {
		var h struct {
			Histograms struct {
				Supported []float64  `json:"supported_quantiles"`
				Computed  []computed `json:"computed_quantiles"`
			} `json:"histograms"`
		}
		h.Histograms.Supported = quantiles
		for i := range dists {
			c := computed{Name: dists[i].full()}
			for _, p := range quantiles {
				var v quantile
				if x := dists[i].dist.quantile(p / 100); !math.IsNaN(x) {
					v.Cumulative = &x
				}
				c.Values = append(c.Values, v)
			}
			h.Histograms.Computed = append(h.Histograms.Computed, c)
		}
		out = append(out, h)
	}
	if err := json.NewEncoder(w).Encode(map[string]any{"stats": out}); err != nil {
		return fmt.Errorf("writing statistics: %w", err)
	}
	return nil
}
