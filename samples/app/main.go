// Command app is the program of the samples: helloworld and the four services of bookinfo,
// chosen by the first argument, with the HTTP behaviour of Istio's samples of these names.
//
//	app helloworld            :5000  /hello /health
//	app productpage           :9080  /productpage /api/v1/products… /health
//	app details|reviews|ratings  :9080
//
// SERVICE_VERSION is the version to answer with (v1, v2, v3), PORT the port to listen on.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: app helloworld|productpage|details|reviews|ratings")
		os.Exit(2)
	}
	version := os.Getenv("SERVICE_VERSION")
	if version == "" {
		version = "v1"
	}
	host, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	port, handler := "9080", http.Handler(nil)
	switch os.Args[1] {
	case "helloworld":
		port, handler = "5000", helloworld(version, host)
	case "productpage":
		handler = productpage(backends(os.Getenv))
	case "details":
		handler = details()
	case "reviews":
		handler = reviews(version, host, backends(os.Getenv))
	case "ratings":
		handler = ratings()
	default:
		fmt.Fprintf(os.Stderr, "app: no sample is called %q\n", os.Args[1])
		os.Exit(2)
	}
	if p := os.Getenv("PORT"); p != "" {
		port = p
	}
	if err := serve(":"+port, handler); err != nil {
		log.Fatal(err)
	}
}

// serve answers until SIGTERM, then lets running requests finish.
func serve(addr string, h http.Handler) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	s := &http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 10 * time.Second}
	s.Protocols = new(http.Protocols)
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan error, 1)
	go func() {
		<-ctx.Done()
		bound, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		done <- s.Shutdown(bound)
	}()
	if err := s.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-done
}

func helloworld(version, host string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintf(w, "Hello version: %s, instance: %s\n", version, host)
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "Helloworld is healthy")
	})
	return mux
}
