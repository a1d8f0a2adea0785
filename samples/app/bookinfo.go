package main

import (
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// urls are the base addresses of the services that others of bookinfo call.
type urls struct{ details, reviews, ratings string }

func backends(env func(string) string) urls {
	host := func(name string) string {
		h := env(strings.ToUpper(name) + "_HOSTNAME")
		if h == "" {
			h = name
		}
		if d := env("SERVICES_DOMAIN"); d != "" {
			h += "." + d
		}
		return "http://" + h + ":9080/" + name + "/"
	}
	return urls{host("details"), host("reviews"), host("ratings")}
}

// propagated are the headers that a service hands on, so that a trace and a user stay one.
var propagated = []string{
	"X-Request-Id", "X-Ot-Span-Context", "X-Datadog-Trace-Id", "X-Datadog-Parent-Id", "X-Datadog-Sampling-Priority",
	"Traceparent", "Tracestate", "X-Cloud-Trace-Context", "Grpc-Trace-Bin",
	"X-B3-Traceid", "X-B3-Spanid", "X-B3-Parentspanid", "X-B3-Sampled", "X-B3-Flags",
	"Sw8", "User-Agent", "End-User", "Cookie", "Authorization", "Jwt",
}

// client makes a connection for each call, so that a plain Service picks a pod for each, too.
var client = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// call gets a JSON document of at most 1 MiB on behalf of r. On failure the document is an error message and the status says why.
func call(r *http.Request, url string) (status int, doc map[string]any) {
	q, err := http.NewRequestWithContext(r.Context(), http.MethodGet, url, nil)
	if err != nil {
		return http.StatusInternalServerError, map[string]any{"error": err.Error()}
	}
	for _, h := range propagated {
		if v := r.Header.Get(h); v != "" {
			q.Header.Set(h, v)
		}
	}
	a, err := client.Do(q)
	if err != nil {
		return http.StatusInternalServerError, map[string]any{"error": err.Error()}
	}
	defer a.Body.Close()
	if err := json.NewDecoder(io.LimitReader(a.Body, 1<<20)).Decode(&doc); err != nil {
		return http.StatusInternalServerError, map[string]any{"error": err.Error()}
	}
	return a.StatusCode, doc
}

func write(w http.ResponseWriter, status int, doc any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(doc)
}

// product reads the number of a product from the path, or answers 400.
func product(w http.ResponseWriter, r *http.Request) (int, bool) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil {
		write(w, http.StatusBadRequest, map[string]string{"error": "please provide numeric product ID"})
	}
	return id, err == nil
}

func healthy(w http.ResponseWriter, service string) {
	write(w, http.StatusOK, map[string]string{"status": service + " is healthy"})
}

func details() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) { healthy(w, "Details") })
	mux.HandleFunc("GET /details/{id}", func(w http.ResponseWriter, r *http.Request) {
		if id, ok := product(w, r); ok {
			write(w, http.StatusOK, map[string]any{
				"id": id, "author": "William Shakespeare", "year": 1595, "type": "paperback", "pages": 200,
				"publisher": "PublisherA", "language": "English", "ISBN-10": "1234567890", "ISBN-13": "123-1234567890",
			})
		}
	})
	return mux
}

func ratings() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) { healthy(w, "Ratings") })
	mux.HandleFunc("GET /ratings/{id}", func(w http.ResponseWriter, r *http.Request) {
		if id, ok := product(w, r); ok {
			write(w, http.StatusOK, map[string]any{"id": id, "ratings": map[string]int{"Reviewer1": 5, "Reviewer2": 4}})
		}
	})
	return mux
}

// reviews has no stars in v1, black ones in v2, red ones in v3.
func reviews(version, host string, to urls) http.Handler {
	color := map[string]string{"v2": "black", "v3": "red"}[version]
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) { healthy(w, "Reviews") })
	mux.HandleFunc("GET /reviews/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, ok := product(w, r)
		if !ok {
			return
		}
		list := []map[string]any{
			{"reviewer": "Reviewer1", "text": "Two pairs of lovers, one night and a wood: nobody leaves as they came. Funny to the last line."},
			{"reviewer": "Reviewer2", "text": "Neither the longest nor the deepest of the comedies, and the one to see first."},
		}
		if color != "" {
			status, doc := call(r, to.ratings+strconv.Itoa(id))
			stars, _ := doc["ratings"].(map[string]any)
			for _, v := range list {
				if s := stars[v["reviewer"].(string)]; status == http.StatusOK && s != nil {
					v["rating"] = map[string]any{"stars": s, "color": color}
				} else {
					v["rating"] = map[string]any{"error": "Ratings service is currently unavailable"}
				}
			}
		}
		write(w, http.StatusOK, map[string]any{"id": strconv.Itoa(id), "podname": host, "clustername": "null", "reviews": list})
	})
	return mux
}

var page = template.Must(template.New("productpage").Funcs(template.FuncMap{"stars": stars}).Parse(`<!DOCTYPE html>
<html>
<head><meta charset="utf-8"><title>Simple Bookstore App</title></head>
<body>
<h1>The Comedy of Errors</h1>
<p>Summary: two sets of twins, separated at birth, meet in one town and are taken for one another all day long.</p>
<h2>Book Details</h2>
{{if .DetailsOK}}<dl>{{range $k, $v := .Details}}<dt>{{$k}}</dt><dd>{{$v}}</dd>{{end}}</dl>
{{else}}<p>Error fetching product details!</p>{{end}}
<h2>Book Reviews</h2>
{{if .ReviewsOK}}{{range .Reviews}}<blockquote><p>{{.text}}</p><small>{{.reviewer}}</small>
{{with .rating}}{{if .error}}<i>{{.error}}</i>{{else}}<font color="{{.color}}">{{stars .stars}}</font>{{end}}{{end}}</blockquote>
{{end}}<p>Reviews served by: <u>{{.Pod}}</u></p>
{{else}}<p>Error fetching product reviews!</p>{{end}}
</body>
</html>
`))

// stars draws a rating, a JSON number from 0 to 5.
func stars(n any) string {
	f, _ := n.(float64)
	return strings.Repeat("★", min(5, max(0, int(f))))
}

func productpage(to urls) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "Product page is healthy") })
	mux.HandleFunc("GET /productpage", func(w http.ResponseWriter, r *http.Request) {
		ds, d := call(r, to.details+"0")
		rs, v := call(r, to.reviews+"0")
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		page.Execute(w, map[string]any{
			"DetailsOK": ds == http.StatusOK, "Details": d,
			"ReviewsOK": rs == http.StatusOK, "Reviews": v["reviews"], "Pod": v["podname"],
		})
	})
	mux.HandleFunc("GET /api/v1/products", func(w http.ResponseWriter, r *http.Request) {
		write(w, http.StatusOK, []map[string]any{{"id": 0, "title": "The Comedy of Errors"}})
	})
	mux.HandleFunc("GET /api/v1/products/{id}", func(w http.ResponseWriter, r *http.Request) {
		if id, ok := product(w, r); ok {
			status, doc := call(r, to.details+strconv.Itoa(id))
			write(w, status, doc)
		}
	})
	for name, base := range map[string]string{"reviews": to.reviews, "ratings": to.ratings} {
		mux.HandleFunc("GET /api/v1/products/{id}/"+name, func(w http.ResponseWriter, r *http.Request) {
			if id, ok := product(w, r); ok {
				status, doc := call(r, base+strconv.Itoa(id))
				write(w, status, doc)
			}
		})
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `<!DOCTYPE html><title>Simple Bookstore App</title><h3>Hello! This is a simple bookstore of several services.</h3><a href="/productpage">Product page</a>`)
	})
	mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/productpage", http.StatusFound) })
	mux.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/productpage", http.StatusFound) })
	return mux
}
