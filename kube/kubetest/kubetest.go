// Package kubetest starts real API servers for tests: etcd and kube-apiserver on loopback, of the
// program that the lab builds. It knows nothing of meshes.
package kubetest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Program finds the lab's kube program: what CARRICK_TEST_KUBE names, bin/kube or lab/bin/kube of
// this checkout, or the newest that the lab has built. It returns "" if there is none.
func Program() string {
	if p := os.Getenv("CARRICK_TEST_KUBE"); p != "" {
		return p
	}
	var found []string
	for dir, _ := os.Getwd(); dir != "/" && dir != ""; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			found = append(found, filepath.Join(dir, "bin/kube"), filepath.Join(dir, "lab/bin/kube"))
			break
		}
	}
	if cache, err := os.UserCacheDir(); err == nil {
		built, _ := filepath.Glob(filepath.Join(cache, "carrick-lab", "*", "kube"))
		more, _ := filepath.Glob(filepath.Join(cache, "carrick-lab", "*", "*", "kube"))
		built = append(built, more...)
		slices.SortFunc(built, func(a, b string) int { return modified(b).Compare(modified(a)) })
		found = append(found, built...)
	}
	for _, p := range found {
		if s, err := os.Stat(p); err == nil && s.Mode().IsRegular() && s.Mode()&0o111 != 0 {
			return p
		}
	}
	return ""
}

func modified(p string) time.Time {
	if s, err := os.Stat(p); err == nil {
		return s.ModTime()
	}
	return time.Time{}
}

// Server is a running API server.
type Server struct {
	Config *rest.Config // of a cluster administrator
	Client kubernetes.Interface

	t         testing.TB
	dir       string
	program   string
	etcd      string
	port      int
	apiserver *exec.Cmd
	exited    chan struct{}
}

const adminToken = "test-administrator"

// Start starts an API server and ends it with the test. Without the program the test is skipped.
// No controllers run: nobody makes service accounts or root CA ConfigMaps in namespaces.
func Start(t testing.TB) *Server {
	t.Helper()
	if testing.Short() {
		t.Skip("a real API server is for the integration tests: not in short mode")
	}
	program := Program()
	if program == "" {
		t.Skip("no kube-apiserver: build the lab (make build && bin/lab build), or name its kube program in CARRICK_TEST_KUBE")
	}
	s := &Server{t: t, dir: t.TempDir(), program: program}
	s.files()
	ports := freePorts(t, 3)
	s.etcd = fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	s.start("etcd", "etcd", filepath.Join(s.dir, "etcd"), s.etcd, fmt.Sprintf("http://127.0.0.1:%d", ports[1]))
	s.port = ports[2]
	s.Config = &rest.Config{Host: fmt.Sprintf("https://127.0.0.1:%d", s.port), BearerToken: adminToken,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true}, QPS: 1000, Burst: 1000}
	var err error
	if s.Client, err = kubernetes.NewForConfig(s.Config); err != nil {
		t.Fatal(err)
	}
	s.Resume()
	// What clients with the server's own CA need.
	ca, err := os.ReadFile(filepath.Join(s.dir, "run", "apiserver.crt"))
	if err != nil {
		t.Fatal(err)
	}
	s.Config.TLSClientConfig = rest.TLSClientConfig{CAData: ca}
	return s
}

func (s *Server) files() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write("sa.key", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	s.write("tokens.csv", []byte(adminToken+",admin,admin,system:masters\n"))
}

func (s *Server) write(name string, data []byte) {
	if err := os.WriteFile(filepath.Join(s.dir, name), data, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// Resume starts the API server, again after Kill, and waits until it is ready.
func (s *Server) Resume() {
	s.t.Helper()
	s.apiserver, s.exited = s.start("apiserver", "kube-apiserver",
		"--etcd-servers="+s.etcd, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", s.port), "--cert-dir="+filepath.Join(s.dir, "run"),
		"--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC",
		"--token-auth-file="+filepath.Join(s.dir, "tokens.csv"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+filepath.Join(s.dir, "sa.key"), "--service-account-signing-key-file="+filepath.Join(s.dir, "sa.key"),
		"--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none", "--profiling=false",
		"--watch-cache=true", "--v=0")
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for {
		err := s.Client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
		if err == nil {
			return
		}
		select {
		case <-s.exited:
			log, _ := os.ReadFile(filepath.Join(s.dir, "apiserver.log"))
			s.t.Fatalf("kube-apiserver ended: %s", log[max(0, len(log)-4000):])
		case <-ctx.Done():
			s.t.Fatalf("kube-apiserver is not ready: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Kill ends the API server at once, as a crash does. What it stored stays.
func (s *Server) Kill() {
	s.apiserver.Process.Kill()
	<-s.exited
}

// Pause stops the API server without closing its connections, as a cut line does, until Continue.
func (s *Server) Pause() { s.apiserver.Process.Signal(syscall.SIGSTOP) }

// Continue is the end of Pause.
func (s *Server) Continue() { s.apiserver.Process.Signal(syscall.SIGCONT) }

func (s *Server) start(name string, args ...string) (*exec.Cmd, chan struct{}) {
	s.t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(s.program, args...)
	cmd.Env = append(os.Environ(), "GOGC=400") // they live for a moment: less garbage collection, more test
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	exited := make(chan struct{})
	var waited atomic.Bool
	go func() { cmd.Wait(); waited.Store(true); close(exited) }()
	s.t.Cleanup(func() {
		if !waited.Load() {
			cmd.Process.Kill()
		}
		<-exited
	})
	return cmd, exited
}

// freePorts returns ports of loopback that nobody listens on now.
func freePorts(t testing.TB, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}
