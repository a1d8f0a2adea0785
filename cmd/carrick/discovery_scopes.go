package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
)

// The level of what logs nothing, and its name.
const (
	levelNone = slog.LevelError + 8
	nameNone  = "none"
)

// scope is a part of the log with a level of its own, which can be changed at any time.
type scope struct {
	name, description string
	level             slog.LevelVar
}

// scopes are the parts of the control plane's log, by name. Those that Istio has, too, have its names.
type scopes struct {
	all []*scope
	out io.Writer
}

// newScopes reads Istio's --log_output_level: LEVEL, or SCOPE:LEVEL,…. A scope that is not named
// has the level of default; client-go's own log says no less than warn unless it is named.
func newScopes(out io.Writer, levels string) (*scopes, error) {
	s := &scopes{out: &lockedWriter{w: out}, all: []*scope{
		{name: "ads", description: "the clusters that are watched, what is compiled, and xDS"},
		{name: "ca", description: "certificates: the control plane's own, and those it signs"},
		{name: "default", description: "start, end, and what belongs to no other scope"},
		{name: "injection", description: "the webhook that adds sidecars"},
		{name: "klog", description: "Kubernetes' client library"},
		{name: "kube", description: "what the control plane writes into its cluster"},
	}}
	level, err := parseLevel(levels)
	if err != nil {
		return nil, err
	}
	for _, sc := range s.all {
		sc.level.Set(level)
	}
	s.find("klog").level.Set(max(level, slog.LevelWarn))
	for part := range strings.SplitSeq(levels, ",") {
		name, l, named := strings.Cut(strings.TrimSpace(part), ":")
		if sc := s.find(name); named && sc != nil {
			sc.level.Set(levelsByName[l])
		}
	}
	return s, nil
}

// find returns the scope of that name, or nil.
func (s *scopes) find(name string) *scope {
	for _, sc := range s.all {
		if sc.name == name {
			return sc
		}
	}
	return nil
}

// logger returns the logger of a scope that exists.
func (s *scopes) logger(name string) *slog.Logger {
	return slog.New(newLineHandler(s.out, &s.find(name).level))
}

// scopeInfo is a scope as Istio's ControlZ has it. StackTraceLevel is always none.
type scopeInfo struct {
	Name            string `json:"name"`
	Description     string `json:"description"`
	OutputLevel     string `json:"output_level"`
	StackTraceLevel string `json:"stack_trace_level"`
	LogCallers      bool   `json:"log_callers"`
}

func (sc *scope) info() scopeInfo {
	return scopeInfo{Name: sc.name, Description: sc.description, OutputLevel: levelName(sc.level.Level()), StackTraceLevel: nameNone}
}

// controlZ serves the scopes as Istio's ControlZ does, which istioctl admin log reads and changes:
// GET /scopej and /scopej/NAME, PUT /scopej/NAME with an output_level.
func (s *scopes) controlZ() http.Handler {
	mux := http.NewServeMux()
	list := func(w http.ResponseWriter, _ *http.Request) {
		infos := []scopeInfo{}
		for _, sc := range s.all {
			infos = append(infos, sc.info())
		}
		writeJSON(w, infos)
	}
	mux.HandleFunc("GET /scopej", list)
	mux.HandleFunc("GET /scopej/{$}", list)
	known := func(serve func(http.ResponseWriter, *http.Request, *scope)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			sc := s.find(r.PathValue("scope"))
			if sc == nil {
				refuse(w, "unknown scope name: %s", r.PathValue("scope"))
				return
			}
			serve(w, r, sc)
		}
	}
	mux.HandleFunc("GET /scopej/{scope}", known(func(w http.ResponseWriter, _ *http.Request, sc *scope) {
		writeJSON(w, sc.info())
	}))
	mux.HandleFunc("PUT /scopej/{scope}", known(func(w http.ResponseWriter, r *http.Request, sc *scope) {
		var info scopeInfo
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&info); err != nil {
			refuse(w, "unable to decode request: %v", err)
			return
		}
		if info.StackTraceLevel != "" && info.StackTraceLevel != nameNone {
			refuse(w, "stack_trace_level %q: stack traces are not logged; leave it out", info.StackTraceLevel)
			return
		}
		if info.OutputLevel != "" {
			l, ok := levelsByName[info.OutputLevel]
			if !ok {
				refuse(w, "output_level %q is not debug, info, warn, error or none", info.OutputLevel)
				return
			}
			sc.level.Set(l)
		}
		w.WriteHeader(http.StatusAccepted)
	}))
	return mux
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, format string, args ...any) {
	http.Error(w, fmt.Sprintf(format, args...), http.StatusBadRequest)
}
