// Package admin serves Envoy's administration interface over HTTP: dumps of configuration,
// statistics and state in the forms that istioctl and Envoy's tools read. It asks its owner for what
// it shows, and changes nothing itself.
package admin

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/stats"
)

// State is the state of the proxy as Envoy names it.
type State uint8

// States.
const (
	Live State = iota
	Draining
	PreInitializing
	Initializing
)

var stateNames = [...]string{"LIVE", "DRAINING", "PRE_INITIALIZING", "INITIALIZING"}

// Options is what the interface shows and may do. Functions may be called from any goroutine; those
// that are nil show nothing, or answer that they are not supported.
type Options struct {
	Version     string
	Started     time.Time
	Node        *core.Node           // may be nil
	Bootstrap   *bootstrap.Bootstrap // may be nil
	Concurrency int
	ConfigPath  string

	State     func() State
	Config    func() *config.Config
	Hosts     func(cluster string) []Host // the hosts in use; nil: as the configuration says
	Listeners func() []Listener
	Secrets   func() []Secret // beside the configuration's
	Stats     *stats.Store
	Level     *slog.LevelVar

	Drain      func(graceful, inboundOnly bool)
	FailHealth func(failed bool)
	Quit       func()
	ReopenLogs func() error
}

// Host is an endpoint of a cluster in use.
type Host struct {
	Endpoint *config.Endpoint
	Address  netip.AddrPort // resolved; not valid: Endpoint's own
	Locality *config.LocalityEndpoints
	Priority int

	FailedOutlier, FailedActive, Excluded bool

	CxActive, CxTotal, CxConnectFail                 uint64
	RqActive, RqTotal, RqSuccess, RqError, RqTimeout uint64
}

// Listener is a listener with the addresses that it is bound to.
type Listener struct {
	Name      string
	Addresses []netip.AddrPort
}

// Secret is a certificate or a set of roots that the proxy has from elsewhere.
type Secret struct {
	Name    string
	Chain   []byte // PEM, leaf first; or
	Roots   []byte // PEM
	Version string
	Updated time.Time
}

type handler struct {
	o Options
}

// New returns the interface. Serve it on loopback only: it is not authenticated.
func New(o Options) http.Handler {
	if o.State == nil {
		o.State = func() State { return Live }
	}
	if o.Config == nil {
		o.Config = func() *config.Config { return &config.Config{} }
	}
	h := &handler{o}
	mux := http.NewServeMux()
	for _, e := range h.endpoints() {
		f := e.serve
		if e.post {
			f = postOnly(f)
		}
		mux.HandleFunc(e.path, f)
	}
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return localOnly(mux)
}

type endpoint struct {
	path, help string
	post       bool
	serve      http.HandlerFunc
}

func (h *handler) endpoints() []endpoint {
	return []endpoint{
		{"/{$}", "this page", false, h.help},
		{"/certs", "print certs on machine", false, h.certs},
		{"/clusters", "upstream cluster status", false, h.clusters},
		{"/config_dump", "dump current configuration", false, h.configDump},
		{"/drain_listeners", "drain listeners", true, h.drain},
		{"/healthcheck/fail", "cause the server to fail health checks", true, h.failHealth(true)},
		{"/healthcheck/ok", "cause the server to pass health checks", true, h.failHealth(false)},
		{"/heapprofiler", "enable/disable the heap profiler (enable=y|n); the profile is at /debug/pprof/heap", true, h.heapProfiler},
		{"/help", "print out list of admin commands", false, h.help},
		{"/hot_restart_version", "print the hot restart compatibility version", false, h.hotRestart},
		{"/init_dump", "dump current init manager information", false, h.initDump},
		{"/listeners", "print listener info", false, h.listeners},
		{"/logging", "query/change logging levels", true, h.logging},
		{"/memory", "print current allocation/heap usage", false, h.memory},
		{"/quitquitquit", "exit the server", true, h.quit},
		{"/ready", "print server state, return 200 if LIVE, otherwise return 503", false, h.ready},
		{"/reopen_logs", "reopen access logs", true, h.reopen},
		{"/runtime", "print runtime values", false, h.runtime},
		{"/server_info", "print server version/status information", false, h.serverInfo},
		{"/stats", "print server stats", false, h.stats},
		{"/stats/prometheus", "print server stats in prometheus format", false, h.prometheus},
	}
}

// localOnly refuses requests that a browser was talked into: a web page can make a browser connect
// to loopback under a name of its own, but not without naming itself in Host or Origin.
func localOnly(next http.Handler) http.Handler {
	local := func(host string) bool {
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		_, err := netip.ParseAddr(strings.Trim(host, "[]"))
		return err == nil || host == "localhost" || host == ""
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		origin := strings.TrimPrefix(strings.TrimPrefix(r.Header.Get("Origin"), "https://"), "http://")
		if !local(r.Host) || !local(origin) {
			http.Error(w, "this interface answers to localhost and IP addresses only", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func postOnly(f http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", "POST")
			http.Error(w, fmt.Sprintf("Method %s not allowed, POST required.", r.Method), http.StatusMethodNotAllowed)
			return
		}
		f(w, r)
	}
}

func text(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	w.Header().Set("Cache-Control", "no-cache, max-age=0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
}

// writeJSON writes m as Envoy does: proto names, unset fields left out.
func writeJSON(w http.ResponseWriter, m proto.Message) {
	b, err := protojson.MarshalOptions{UseProtoNames: true, Multiline: true, Indent: " "}.Marshal(m)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache, max-age=0")
	w.Write(append(b, '\n'))
}

func (h *handler) help(w http.ResponseWriter, _ *http.Request) {
	text(w)
	fmt.Fprintln(w, "admin commands are:")
	for _, e := range h.endpoints() {
		method := ""
		if e.post {
			method = " (POST)"
		}
		fmt.Fprintf(w, "  %s%s: %s\n", strings.TrimSuffix(e.path, "{$}"), method, e.help)
	}
}

func (h *handler) ready(w http.ResponseWriter, _ *http.Request) {
	text(w)
	s := h.o.State()
	if s != Live {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintln(w, stateNames[s])
}

func (h *handler) serverInfo(w http.ResponseWriter, _ *http.Request) {
	up := durationpb.New(time.Since(h.o.Started).Truncate(time.Second))
	version := runtime.Version()
	writeJSON(w, &adminv3.ServerInfo{
		Version:            "carrick/" + h.o.Version + "/Clean/RELEASE/" + version,
		State:              adminv3.ServerInfo_State(h.o.State()),
		UptimeCurrentEpoch: up, UptimeAllEpochs: up,
		HotRestartVersion: "disabled",
		CommandLineOptions: &adminv3.CommandLineOptions{
			Concurrency: uint32(h.o.Concurrency), ConfigPath: h.o.ConfigPath, DisableHotRestart: true,
			ServiceNode: h.o.Node.GetId(), ServiceCluster: h.o.Node.GetCluster(), LogLevel: strings.ToLower(h.level().String()),
		},
		Node: h.o.Node,
	})
}

func (h *handler) hotRestart(w http.ResponseWriter, _ *http.Request) {
	text(w)
	fmt.Fprintln(w, "disabled")
}

func (h *handler) initDump(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, &adminv3.UnreadyTargetsDumps{})
}

func (h *handler) runtime(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintln(w, `{"layers":[],"entries":{}}`)
}

// heapProfiler switches the sampling of allocations. What was allocated before is not in the profile.
func (h *handler) heapProfiler(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Query().Get("enable") {
	case "y":
		runtime.MemProfileRate = profileRate
	case "n":
		runtime.MemProfileRate = 0
	default:
		http.Error(w, "?enable=<y|n>", http.StatusBadRequest)
		return
	}
	text(w)
	fmt.Fprintln(w, "OK")
}

// profileRate is after how many bytes of allocation one is sampled, on average: the runtime's default.
const profileRate = 512 << 10

func (h *handler) memory(w http.ResponseWriter, _ *http.Request) { writeJSON(w, Memory()) }

// Memory returns the process's use of memory.
func Memory() *adminv3.Memory {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/released:bytes"},
	}
	metrics.Read(samples)
	return &adminv3.Memory{
		Allocated: samples[0].Value.Uint64(), HeapSize: samples[1].Value.Uint64() - samples[3].Value.Uint64(),
		PageheapFree: samples[2].Value.Uint64(), PageheapUnmapped: samples[3].Value.Uint64(),
		TotalPhysicalBytes: resident(),
	}
}

// resident returns the resident set size in bytes, 0 if it cannot be read.
func resident() uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(f[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}

func (h *handler) level() slog.Level {
	if h.o.Level == nil {
		return slog.LevelInfo
	}
	return h.o.Level.Level()
}

// levels are Envoy's, as far as slog has them.
var levels = map[string]slog.Level{
	"trace": slog.LevelDebug - 4, "debug": slog.LevelDebug, "info": slog.LevelInfo, "warning": slog.LevelWarn,
	"warn": slog.LevelWarn, "error": slog.LevelError, "critical": slog.LevelError + 4, "off": slog.LevelError + 8,
}

// logging changes the one level there is: ?level=L, ?paths=NAME:L,… and ?NAME=L (the highest detail
// asked for wins, since there is one logger).
func (h *handler) logging(w http.ResponseWriter, r *http.Request) {
	var want []string
	for k, vs := range r.URL.Query() {
		for _, v := range vs {
			if k == "paths" {
				for _, p := range strings.Split(v, ",") {
					_, l, ok := strings.Cut(p, ":")
					if !ok {
						l = p
					}
					want = append(want, l)
				}
				continue
			}
			want = append(want, v)
		}
	}
	level, set := slog.Level(0), false
	for _, name := range want {
		l, ok := levels[strings.ToLower(name)]
		if !ok {
			http.Error(w, fmt.Sprintf("unknown logger level %q; one of trace, debug, info, warning, error, critical, off", name), http.StatusBadRequest)
			return
		}
		if !set || l < level {
			level, set = l, true
		}
	}
	if set && h.o.Level == nil {
		http.Error(w, "the log level is fixed", http.StatusNotImplemented)
		return
	}
	if set {
		h.o.Level.Set(level)
	}
	text(w)
	name := "info"
	for n, l := range levels {
		if l == h.level() && n != "warn" {
			name = n
		}
	}
	fmt.Fprintf(w, "active loggers:\n  carrick: %s\n", name)
}

func (h *handler) drain(w http.ResponseWriter, r *http.Request) {
	if h.o.Drain == nil {
		notSupported(w)
		return
	}
	q := r.URL.Query()
	h.o.Drain(q.Has("graceful"), q.Has("inboundonly"))
	ok(w)
}

func (h *handler) failHealth(failed bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if h.o.FailHealth == nil {
			notSupported(w)
			return
		}
		h.o.FailHealth(failed)
		ok(w)
	}
}

func (h *handler) quit(w http.ResponseWriter, _ *http.Request) {
	if h.o.Quit == nil {
		notSupported(w)
		return
	}
	ok(w)
	h.o.Quit()
}

func (h *handler) reopen(w http.ResponseWriter, _ *http.Request) {
	if h.o.ReopenLogs == nil {
		notSupported(w)
		return
	}
	if err := h.o.ReopenLogs(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	ok(w)
}

func ok(w http.ResponseWriter) {
	text(w)
	fmt.Fprintln(w, "OK")
}

func notSupported(w http.ResponseWriter) {
	http.Error(w, "not supported here", http.StatusNotImplemented)
}
