package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// program is one of the node's processes.
type program struct {
	name  string
	argv  []string
	after func(context.Context) // returns when it may start; nil: at once
}

// restartDelay passes between a program's end and its next start.
const restartDelay = time.Second

// initProcess starts programs and, as process 1, reaps every orphan of the node.
type initProcess struct {
	programs []*program
	log      *slog.Logger

	mu      sync.Mutex // held across a start, so that no child is reaped before it is known
	running map[int]*program
	started map[int]time.Time
}

func newInit(ps []*program, log *slog.Logger) *initProcess {
	return &initProcess{programs: ps, log: log, running: map[int]*program{}, started: map[int]time.Time{}}
}

// run returns only if it can wait no longer.
func (i *initProcess) run() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for _, p := range i.programs {
		go func() {
			if p.after != nil {
				p.after(ctx)
			}
			i.start(p)
		}()
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch err {
		case nil:
		case syscall.EINTR:
			continue
		case syscall.ECHILD: // none has been started yet
			time.Sleep(10 * time.Millisecond)
			continue
		default:
			return fmt.Errorf("waiting for the node's processes: %w", err)
		}
		i.mu.Lock()
		p, at := i.running[pid], i.started[pid]
		delete(i.running, pid)
		delete(i.started, pid)
		i.mu.Unlock()
		if p != nil {
			i.log.Warn("program ended; starting it again", "program", p.name, "status", int(status), "lived", time.Since(at).Round(time.Millisecond))
			time.AfterFunc(restartDelay, func() { i.start(p) })
		}
	}
}

func (i *initProcess) start(p *program) {
	i.mu.Lock()
	defer i.mu.Unlock()
	pid, err := launch(p)
	if err != nil {
		i.log.Error("program does not start; trying again", "program", p.name, "error", err)
		time.AfterFunc(restartDelay, func() { i.start(p) })
		return
	}
	i.running[pid] = p
	i.started[pid] = time.Now()
}

// memory makes a node's programs collect their garbage less often: a lab has few
// processors, and a quarter of an API server's time went into that.
var memory = []string{"GOGC=400", "GOMEMLIMIT=1GiB"}

func launch(p *program) (int, error) {
	out, err := os.OpenFile(filepath.Join(logDir, p.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	return syscall.ForkExec(p.argv[0], p.argv, &syscall.ProcAttr{
		Env:   append([]string{"PATH=" + binDir + ":" + cniDir + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}, memory...),
		Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}

// socketExists returns a wait for a file.
func socketExists(path string) func(context.Context) {
	return func(ctx context.Context) {
		poll(ctx, func() bool { _, err := os.Stat(path); return err == nil })
	}
}

// serverReady returns a wait for an API server. A program started before that
// only takes processor time which the server needs, and then sits out its own
// retry delays.
func serverReady(url string) func(context.Context) {
	c := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		// Only readiness is read from it, before there is anything to protect.
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives: true,
	}}
	return func(ctx context.Context) {
		poll(ctx, func() bool {
			r, err := c.Get(url + "/readyz")
			if err != nil {
				return false
			}
			r.Body.Close()
			return r.StatusCode == http.StatusOK
		})
	}
}

func poll(ctx context.Context, done func() bool) {
	for !done() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}
