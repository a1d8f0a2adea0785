package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"
)

//go:embed conf
var conf embed.FS

// engine is a proxy that can be measured.
type engine struct {
	name string
	kind string // of its configuration: conf/KIND/ROLE
	// command returns its command line for a configuration.
	command func(file string) []string
	// http2 is with HTTP/2 between the two proxies of a pair, for what it saves or costs; else HTTP/1.1.
	http2 bool
}

func (e engine) file(role string) string { return "conf/" + e.kind + "/" + role }

// can reports whether there is a configuration for all roles, and a pair where one is needed.
func (e engine) can(roles []string) bool {
	if e.http2 && len(roles) < 2 {
		return false
	}
	return !slices.ContainsFunc(roles, func(role string) bool {
		_, err := conf.Open(e.file(role))
		return err != nil
	})
}

// envoyLike is a proxy with the command line of Envoy.
func (b *bench) envoyLike(name, program string, args ...string) engine {
	return engine{name: name, kind: "envoy", command: func(file string) []string {
		cmd := append([]string{program}, args...)
		return append(cmd, "--concurrency", "1", "-c", file)
	}}
}

// withHTTP2 is the same proxy, with HTTP/2 between the two of a pair.
func (e engine) withHTTP2() engine {
	e.name, e.http2 = e.name+" over h2", true
	return e
}

func nginx() engine {
	return engine{name: "nginx", kind: "nginx", command: func(file string) []string {
		return []string{"nginx", "-p", filepath.Dir(file), "-e", "stderr", "-c", file}
	}}
}

func haproxy() engine {
	return engine{name: "haproxy", kind: "haproxy", command: func(file string) []string { return []string{"haproxy", "-db", "-f", file} }}
}

// values are what the templates of conf know.
type values struct {
	Port, Upstream int
	Dir, Server    string
	HTTP2          bool // upstream, where the configuration has both
	Keys           keys
	App            ports
}

// start runs an engine in a role that sends to the upstream port.
func (b *bench) start(ctx context.Context, e engine, role string, upstream int) (*process, error) {
	v := values{Upstream: upstream, Dir: b.dir, Server: serverName, HTTP2: e.http2, Keys: b.keys}
	var err error
	if v.Port, err = freePort(); err != nil {
		return nil, err
	}
	file, err := b.render(e.file(role), e.name+"-"+role, v)
	if err != nil {
		return nil, err
	}
	return startProcess(ctx, e.command(file), v.Port)
}

func (b *bench) render(from, to string, v values) (string, error) {
	return render(from, filepath.Join(b.dir, to+".yaml"), v)
}

func render(from, to string, v values) (string, error) {
	t, err := template.ParseFS(conf, from)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, v); err != nil {
		return "", err
	}
	return to, os.WriteFile(to, out.Bytes(), 0o600)
}

// ports are those of the application: nginx in three forms.
type ports struct{ http, https, h2c int }

// The templates see them by these names.
func (p ports) HTTP() int  { return p.http }
func (p ports) HTTPS() int { return p.https }
func (p ports) H2C() int   { return p.h2c }

func startApp(ctx context.Context, dir string, k keys) (stop func(), p ports, err error) {
	for _, n := range []*int{&p.http, &p.https, &p.h2c} {
		if *n, err = freePort(); err != nil {
			return nil, p, err
		}
	}
	for _, f := range []struct {
		name string
		size int
	}{{"1k", 1024}, {"100k", 100 << 10}} {
		if err := os.WriteFile(filepath.Join(dir, f.name), bytes.Repeat([]byte{'x'}, f.size), 0o644); err != nil {
			return nil, p, err
		}
	}
	file, err := render("conf/app", filepath.Join(dir, "app.conf"), values{Dir: dir, Keys: k, App: p})
	if err != nil {
		return nil, p, err
	}
	proc, err := startProcess(ctx, nginx().command(file), p.http)
	if err != nil {
		return nil, p, fmt.Errorf("nginx as the application: %w", err)
	}
	return proc.stop, p, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// process is a running program that listens on port.
type process struct {
	cmd  *exec.Cmd
	port int
	done chan struct{}
}

func startProcess(ctx context.Context, args []string, port int) (*process, error) {
	var log bytes.Buffer
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd, port, make(chan struct{})}
	go func() { cmd.Wait(); close(p.done) }()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		select {
		case <-p.done:
			return nil, fmt.Errorf("%s has ended: %s", args[0], strings.TrimSpace(log.String()))
		default:
		}
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			c.Close()
			return p, nil
		}
	}
	p.stop()
	return nil, fmt.Errorf("%s does not listen: %s", args[0], strings.TrimSpace(log.String()))
}

func (p *process) stop() {
	p.cmd.Process.Kill()
	<-p.done
}

// cpu returns the user and system time spent so far. The kernel counts in hundredths of a second.
func (p *process) cpu() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // proc(5): from the third field on
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// memory fills in what the process holds.
func (p *process) memory(r *result) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch n, _ := strconv.Atoi(f[1]); f[0] {
		case "VmRSS:":
			r.rss = n
		case "RssAnon:":
			r.anon = n
		}
	}
	if r.rss == 0 {
		return errors.New("no VmRSS in /proc/PID/status")
	}
	return nil
}
