package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// archive writes an image archive for an architecture.
func archive(t *testing.T, ref, arch string) (string, v1.Image) {
	t.Helper()
	img, err := random.Image(2000, 2)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), arch+".tar")
	if err := tarball.WriteToFile(file, tag, img); err != nil {
		t.Fatal(err)
	}
	return file, img
}

// realRegistry serves go-containerregistry's registry; with a user it asks for that password.
func realRegistry(t *testing.T, user, password string, start func(http.Handler) *httptest.Server) *httptest.Server {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, p, _ := r.BasicAuth()
		if user != "" && (u != user || p != password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that are meant to fail
	t.Cleanup(s.Close)
	return s
}

func runCarrick(args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	root := New("1.0.0")
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&errs)
	code = Execute(context.Background(), root)
	return out.String(), errs.String(), code
}

func TestImagePush(t *testing.T) {
	amd, amdImage := archive(t, "docker.io/carrickmesh/carrick:1.0.0", "amd64")
	arm, _ := archive(t, "docker.io/carrickmesh/carrick:1.0.0", "arm64")
	docker := t.TempDir()
	t.Setenv("DOCKER_CONFIG", docker)

	s := realRegistry(t, "mesh", "open sesame", httptest.NewServer)
	host := strings.TrimPrefix(s.URL, "http://")
	_, stderr, code := runCarrick("image", "push", host+"/team/mesh", "--archive", amd)
	if code != 1 || !strings.Contains(stderr, "log in first (docker login "+host+")") {
		t.Errorf("without credentials: exit code %d, %s", code, stderr)
	}

	auth := base64.StdEncoding.EncodeToString([]byte("mesh:open sesame"))
	if err := os.WriteFile(filepath.Join(docker, "config.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, host, auth), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := runCarrick("image", "push", host+"/team/mesh/", "--archive", amd)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	for _, want := range []string{
		"✔ " + host + "/team/mesh/carrick:1.0.0 (linux/amd64), sha256:",
		"Next: carrick install --set hub=" + host + "/team/mesh --set tag=1.0.0\n",
		"values.global.imagePullSecrets[0]=",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in:\n%s", want, stdout)
		}
	}
	if strings.Contains(stdout+stderr, "sesame") || strings.Contains(stdout+stderr, auth) {
		t.Error("the password is printed")
	}

	ref, err := name.NewTag(host + "/team/mesh/carrick:1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	login := remote.WithTransport(basic{"mesh", "open sesame"})
	img, err := remote.Image(ref, login)
	if err != nil {
		t.Fatal(err)
	}
	wantConfig, _ := amdImage.ConfigName()
	if got, err := img.ConfigName(); err != nil || got != wantConfig {
		t.Errorf("pulled %v (%v), pushed %v", got, err, wantConfig)
	}

	// Both architectures become one name.
	stdout, stderr, code = runCarrick("image", "push", host+"/team/mesh", "--archive", amd, "--archive", arm)
	if code != 0 || !strings.Contains(stdout, "(linux/amd64, linux/arm64)") {
		t.Fatalf("exit code %d: %s%s", code, stdout, stderr)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := remote.Image(ref, login, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: arch}))
		if err != nil {
			t.Fatal(err)
		}
		if c, err := img.ConfigFile(); err != nil || c.Architecture != arch {
			t.Errorf("for %s: %v, %v", arch, c, err)
		}
	}
}

// basic sends a user and a password with each request.
type basic struct{ user, password string }

func (b basic) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.SetBasicAuth(b.user, b.password)
	return http.DefaultTransport.RoundTrip(r)
}

// TestImagePushInsecure: a certificate that nobody vouches for is refused, unless that is asked for.
func TestImagePushInsecure(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	file, _ := archive(t, "carrick:1.0.0", "amd64")
	s := realRegistry(t, "", "", func(h http.Handler) *httptest.Server {
		s := httptest.NewUnstartedServer(h)
		s.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		s.StartTLS()
		return s
	})
	// 127.0.0.1 may be spoken to by HTTP; a name of the certificate's is not asked for here.
	host := strings.Replace(strings.TrimPrefix(s.URL, "https://"), "127.0.0.1", "registry.localtest.invalid", 1)
	_, stderr, code := runCarrick("image", "push", host, "--archive", file, "--timeout", "5s")
	if code != 1 || !strings.Contains(stderr, "pushing "+host+"/carrick:1.0.0: ") {
		t.Errorf("a host that is not there: exit code %d, %s", code, stderr)
	}
	host = strings.TrimPrefix(s.URL, "https://")
	_, stderr, code = runCarrick("image", "push", host, "--archive", file)
	if code != 1 || !strings.Contains(stderr, "give --insecure") {
		t.Errorf("an unknown certificate: exit code %d, %s", code, stderr)
	}
	if out, stderr, code := runCarrick("image", "push", host, "--archive", file, "--insecure"); code != 0 || strings.Contains(out, "PullSecrets") {
		t.Errorf("--insecure: exit code %d, %s%s", code, out, stderr)
	}
}

func TestImagePushMistakes(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	whole, _ := archive(t, "carrick:1.0.0", "amd64")
	other, _ := archive(t, "carrick:1.0.0", "amd64")
	b, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(t.TempDir(), "half.tar")
	if err := os.WriteFile(half, b[:len(b)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	none := httptest.NewServer(nil)
	closed := strings.TrimPrefix(none.URL, "http://")
	none.Close()
	for _, c := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{closed, "--archive", half}, half + " is not a whole image archive", 1},
		{[]string{closed, "--archive", "nowhere.tar"}, "image archive stat nowhere.tar: no such file or directory", 1},
		{[]string{closed, "--archive", whole}, "connection refused", 1},
		{[]string{closed, "--archive", whole, "--archive", other}, "two archives hold different images of it for linux/amd64", 1},
		{[]string{"https://registry.example.com/mesh", "--archive", whole}, "without a scheme: registry.example.com/mesh", 2},
		{[]string{"Registry.example.com/MESH", "--archive", whole}, "Registry.example.com/MESH", 2},
		{[]string{closed}, "name one with --archive", 1},
	} {
		_, stderr, code := runCarrick(append([]string{"image", "push"}, c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: exit code %d, %q; want one line with %q", c.args, code, stderr, c.want)
		}
	}
}
