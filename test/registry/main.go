// Command registry is an image registry in memory, for tests: registry ADDRESS [USER:PASSWORD].
// It knows go-containerregistry's registry and, where a user is given, asks for basic authentication.
package main

import (
	"crypto/subtle"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	if len(os.Args) < 2 || len(os.Args) > 3 {
		fmt.Fprintln(os.Stderr, "usage: registry ADDRESS [USER:PASSWORD]")
		os.Exit(2)
	}
	h := registry.New()
	if len(os.Args) == 3 {
		h = asking(os.Args[2], h)
	}
	s := &http.Server{Addr: os.Args[1], Handler: h, ReadHeaderTimeout: 10 * time.Second}
	fmt.Fprintln(os.Stderr, "registry:", s.ListenAndServe())
	os.Exit(1)
}

// asking lets only requests of one user pass.
func asking(login string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if subtle.ConstantTimeCompare([]byte(user+":"+password), []byte(login)) == 0 {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"log in first"}]}`, http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
}
