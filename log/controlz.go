package log

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// scopeInfo is a scope as Istio's ControlZ has it. StackTraceLevel is always none.
type scopeInfo struct {
	Name            string `json:"name"`
	Description     string `json:"description"`
	OutputLevel     string `json:"output_level"`
	StackTraceLevel string `json:"stack_trace_level"`
	LogCallers      bool   `json:"log_callers"`
}

func (sc *Scope) info() scopeInfo {
	return scopeInfo{
		Name: sc.Name, Description: sc.Description, OutputLevel: LevelName(sc.level.Level()), StackTraceLevel: nameNone,
	}
}

// ControlZ serves the scopes as Istio's ControlZ does, which istioctl admin log reads and changes:
// GET /scopej and /scopej/NAME, PUT /scopej/NAME with an output_level.
func (s *Scopes) ControlZ() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /scopej", s.list)
	mux.HandleFunc("GET /scopej/{$}", s.list)
	mux.HandleFunc("GET /scopej/{scope}", s.known(func(w http.ResponseWriter, _ *http.Request, sc *Scope) {
		writeJSON(w, sc.info())
	}))
	mux.HandleFunc("PUT /scopej/{scope}", s.known(change))
	return mux
}

func (s *Scopes) list(w http.ResponseWriter, _ *http.Request) {
	infos := []scopeInfo{}
	for _, sc := range s.all {
		infos = append(infos, sc.info())
	}
	writeJSON(w, infos)
}

// known serves the scope that the path names, and refuses one that does not exist.
func (s *Scopes) known(serve func(http.ResponseWriter, *http.Request, *Scope)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		sc := s.find(r.PathValue("scope"))
		if sc == nil {
			refuse(w, "unknown scope name: %s", r.PathValue("scope"))
			return
		}
		serve(w, r, sc)
	}
}

func change(w http.ResponseWriter, r *http.Request, sc *Scope) {
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
		l, ok := levels[info.OutputLevel]
		if !ok {
			refuse(w, "output_level %q is not debug, info, warn, error or none", info.OutputLevel)
			return
		}
		sc.level.Set(l)
	}
	w.WriteHeader(http.StatusAccepted)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, format string, args ...any) {
	http.Error(w, fmt.Sprintf(format, args...), http.StatusBadRequest)
}
