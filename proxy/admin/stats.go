package admin

import (
	"fmt"
	"net/http"
	"regexp"

	"github.com/carrick-mesh/carrick/proxy/stats"
)

func (h *handler) stats(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("format") == "prometheus" {
		h.prometheus(w, r)
		return
	}
	q, err := query(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if h.o.Stats == nil {
		notSupported(w)
		return
	}
	switch f := r.URL.Query().Get("format"); f {
	case "json":
		w.Header().Set("Content-Type", "application/json")
		err = h.o.Stats.WriteJSON(w, q)
	case "", "text":
		text(w)
		err = h.o.Stats.WriteText(w, q)
	default:
		http.Error(w, fmt.Sprintf("usage: /stats?format=text|json|prometheus, not %q", f), http.StatusBadRequest)
	}
	if err != nil {
		return // the client has gone
	}
}

func (h *handler) prometheus(w http.ResponseWriter, r *http.Request) {
	q, err := query(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if h.o.Stats == nil {
		notSupported(w)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	if err := h.o.Stats.WritePrometheus(w, q); err != nil {
		return // the client has gone
	}
}

func query(r *http.Request) (stats.Query, error) {
	v := r.URL.Query()
	q := stats.Query{UsedOnly: v.Has("usedonly"), Type: v.Get("type")}
	switch q.Type {
	case "", "All":
		q.Type = ""
	case "Counters", "Gauges", "Histograms":
	default:
		return q, fmt.Errorf("type is %q, none of All, Counters, Gauges, Histograms", q.Type)
	}
	if f := v.Get("filter"); f != "" {
		re, err := regexp.Compile(f)
		if err != nil {
			return q, fmt.Errorf("filter: %w", err)
		}
		q.Filter = re
	}
	return q, nil
}
