package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Scrape says where the application serves its own Prometheus metrics, which the agent adds to
// the proxy's. The zero value is nowhere.
type Scrape struct {
	Path string // "/metrics"
	Port int
}

// ParseScrape reads the JSON of ISTIO_PROMETHEUS_ANNOTATIONS: {"scrape":"true","path":"","port":""}.
func ParseScrape(s string) (Scrape, error) {
	if s == "" {
		return Scrape{}, nil
	}
	var a struct{ Scrape, Path, Port string }
	if err := json.Unmarshal([]byte(s), &a); err != nil {
		return Scrape{}, fmt.Errorf("ISTIO_PROMETHEUS_ANNOTATIONS: %w", err)
	}
	if a.Scrape != "true" {
		return Scrape{}, nil
	}
	out := Scrape{Path: "/metrics", Port: 80}
	if a.Path != "" {
		out.Path = "/" + strings.TrimPrefix(a.Path, "/")
	}
	if a.Port != "" {
		n, err := strconv.ParseUint(a.Port, 10, 16)
		if err != nil || n == 0 {
			return Scrape{}, fmt.Errorf("ISTIO_PROMETHEUS_ANNOTATIONS: port: %q is not a port", a.Port)
		}
		out.Port = int(n)
	}
	return out, nil
}

// Bounds on the application's metrics.
const (
	maxMetrics    = 32 << 20
	scrapeTimeout = 10 * time.Second
)

// statusServer answers Kubernetes and Prometheus on port 15020: readiness, the application's
// probes, all metrics of the pod.
type statusServer struct {
	ready   func(context.Context) error
	metrics func(context.Context, io.Writer) error // the proxy's
	certs   *Certificates
	quit    func()
	probes  map[string]*Probe
	prober  *prober
	scrape  Scrape
	log     *slog.Logger

	wasReady atomic.Bool
	told     atomic.Pointer[string] // why it was not ready when that was last logged
	scrapes  atomic.Uint64
	failures [3]atomic.Uint64 // by source
}

// The sources of metrics, in the order they are written.
var sources = [3]string{"agent", "proxy", "application"}

func (s *statusServer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz/ready", s.serveReady)
	mux.HandleFunc("GET /stats/prometheus", s.serveMetrics)
	mux.HandleFunc("GET /metrics", s.serveMetrics)
	mux.HandleFunc("POST /quitquitquit", s.serveQuit)
	for _, prefix := range []string{"/app-health/", "/app-lifecycle/"} {
		mux.HandleFunc(prefix, func(w http.ResponseWriter, r *http.Request) {
			p := s.probes[r.URL.Path]
			if p == nil {
				http.NotFound(w, r)
				return
			}
			s.prober.serve(w, r, p)
		})
	}
	return mux
}

func (s *statusServer) serveReady(w http.ResponseWriter, r *http.Request) {
	err := s.ready(r.Context())
	if was := s.wasReady.Swap(err == nil); was != (err == nil) {
		if err == nil {
			s.log.Info("ready")
			s.told.Store(nil)
		} else {
			s.log.Warn("no longer ready")
		}
	}
	if err != nil {
		reason := err.Error()
		if last := s.told.Swap(&reason); last == nil || *last != reason {
			s.log.Warn("not ready", "reason", reason)
		}
		http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusOK)
}

func (s *statusServer) serveQuit(w http.ResponseWriter, r *http.Request) {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !from.Addr().Unmap().IsLoopback() {
		http.Error(w, "only from within the pod", http.StatusForbidden)
		return
	}
	io.WriteString(w, "OK\n")
	s.log.Info("asked to quit")
	s.quit()
}

// serveMetrics writes the metrics of the agent, the proxy and the application one after another.
// One that fails is left out, and counted.
func (s *statusServer) serveMetrics(w http.ResponseWriter, r *http.Request) {
	s.scrapes.Add(1)
	ctx, cancel := context.WithTimeout(r.Context(), requested(r))
	defer cancel()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	for i, write := range []func(context.Context, io.Writer) error{s.own, s.metrics, s.application} {
		var b bytes.Buffer
		if err := write(ctx, &b); err != nil {
			s.failures[i].Add(1)
			s.log.Warn("metrics left out", "of", sources[i], "error", err)
			continue
		}
		if b.Len() > 0 && b.Bytes()[b.Len()-1] != '\n' {
			b.WriteByte('\n')
		}
		if _, err := b.WriteTo(w); err != nil {
			return
		}
	}
}

// requested is how long Prometheus waits, less a margin.
func requested(r *http.Request) time.Duration {
	sec, err := strconv.ParseFloat(r.Header.Get("X-Prometheus-Scrape-Timeout-Seconds"), 64)
	if err != nil || sec <= 0 || sec > scrapeTimeout.Seconds() {
		return scrapeTimeout
	}
	return time.Duration(sec * 0.9 * float64(time.Second))
}

func (s *statusServer) own(_ context.Context, w io.Writer) error {
	fmt.Fprintf(w, "# TYPE istio_agent_scrapes_total counter\nistio_agent_scrapes_total %d\n", s.scrapes.Load())
	fmt.Fprintf(w, "# TYPE istio_agent_scrape_failures_total counter\n")
	for i, name := range sources {
		fmt.Fprintf(w, "istio_agent_scrape_failures_total{type=%q} %d\n", name, s.failures[i].Load())
	}
	if cr, _ := s.certs.Current(); cr != nil {
		left := time.Until(cr.Certificate.Leaf.NotAfter).Seconds()
		fmt.Fprintf(w, "# TYPE istio_agent_cert_expiry_seconds gauge\nistio_agent_cert_expiry_seconds{resource_name=%q} %.0f\n", certificateName, left)
	}
	return nil
}

// application asks the application for its metrics, as Prometheus would.
func (s *statusServer) application(ctx context.Context, w io.Writer) error {
	if s.scrape.Port == 0 {
		return nil
	}
	return scrape(ctx, s.prober.dial, "http://"+s.prober.address(probePort(s.scrape.Port))+s.scrape.Path, w)
}

// scrape copies metrics in Prometheus' text format.
func scrape(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), url string, w io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	t := &http.Transport{DisableKeepAlives: true, DialContext: dial}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	n, err := io.Copy(w, io.LimitReader(resp.Body, maxMetrics+1))
	if err == nil && n > maxMetrics {
		err = fmt.Errorf("GET %s: more than %d bytes", url, maxMetrics)
	}
	return err
}

// serveHTTP serves h on a listener until ctx ends.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
