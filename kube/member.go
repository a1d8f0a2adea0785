package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"github.com/carrick-mesh/carrick/mesh"
)

// Status is where a cluster stands, in Istio's words, and two of our own.
type Status string

// Statuses.
const (
	Syncing Status = "syncing" // not everything has been listed yet
	Synced  Status = "synced"
	Timeout Status = "timeout" // syncing takes longer than it should
	Closed  Status = "closed"
	Stale   Status = "stale" // the API server does not answer; what was last seen stays
	Failed  Status = "error" // see Message
)

const (
	syncTimeout  = 30 * time.Second // after which syncing is called a time-out; it goes on
	healthPeriod = 5 * time.Second
)

// ClusterStatus is where one cluster of the mesh stands.
type ClusterStatus struct {
	ID      string
	Secret  string // "namespace/name" of the remote secret, empty for the own cluster
	Server  string // the API server's address
	Status  Status
	Message string    // what is wrong and what to do, empty if nothing
	Note    string    // what is worth knowing though nothing is wrong
	Since   time.Time // of Status
}

// member is one API server of the mesh. Its goroutine is run.
type member struct {
	id      string
	kinds   []watched
	sink    Sink
	resolve *resolver
	trust   *trust // to compare its roots with, nil for the own cluster
	log     *slog.Logger
	changed func() // the status is another one

	configs chan config // the newest credentials

	mu     sync.Mutex
	secret string
	status ClusterStatus
	client *Client // for calls: the live one, else the next one
}

// config is credentials, or why there are none.
type config struct {
	rest *rest.Config
	err  error
}

// attempt is one set of credentials at work.
type attempt struct {
	feed   *feed
	client *Client
	began  time.Time
	cancel context.CancelFunc
	done   chan struct{}
}

func (a *attempt) stop() {
	if a != nil {
		a.feed.end()
		a.cancel()
		<-a.done
		if a.feed.resolve != nil {
			a.feed.resolve.forgetAll(a.feed)
		}
	}
}

func (a *attempt) synced() <-chan struct{} {
	if a == nil {
		return nil
	}
	return a.feed.synced
}

func (a *attempt) broken() <-chan struct{} {
	if a == nil {
		return nil
	}
	return a.feed.broken
}

// set gives new credentials. Those in use stay until the new ones have proved to work.
func (m *member) set(c config) {
	select {
	case <-m.configs:
	default:
	}
	m.configs <- c
}

func (m *member) start(ctx context.Context, c *Client) *attempt {
	ctx, cancel := context.WithCancel(ctx)
	a := &attempt{feed: newFeed(m.id, m.sink, m.resolve), client: c, began: time.Now(), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.feed.run(ctx, c, m.kinds)
	}()
	return a
}

// run follows the cluster until ctx ends, and then takes it away if leave is true at that time.
func (m *member) run(ctx context.Context, leave func() bool) {
	var live, next *attempt
	var problem error // of the newest credentials
	var lost silence  // of the live API server
	misses := 0
	var roots peerRoots // of the live one's cluster
	var release <-chan time.Time
	health := time.NewTicker(healthPeriod)
	defer health.Stop()
	defer func() {
		next.stop()
		live.stop()
		if leave() {
			m.sink.Events([]mesh.Event{mesh.Gone((&mesh.Cluster{ID: m.id}).Key())})
		}
		m.tell(ClusterStatus{Status: Closed})
	}()
	stale := func(why error) {
		now, was := why != nil, !lost.since.IsZero()
		if lost.why = why; now == was {
			return
		}
		if lost.since = (time.Time{}); now {
			lost.since = time.Now()
			m.log.Warn("API server cannot be used; what was last seen of the cluster stays", "cluster", m.id, "server", live.client.Host(), "error", why)
		} else {
			m.log.Info("API server answers again", "cluster", m.id)
		}
		live.feed.hush(now)
		release = time.After(graceTime) // nothing is released while it is silent
		m.sink.Events([]mesh.Event{{Object: &mesh.Cluster{ID: m.id, Synced: true, Stale: now}}})
	}
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-m.configs:
			next.stop()
			next, problem = nil, c.err
			if problem == nil {
				var client *Client
				if client, problem = Connect(c.rest); problem == nil {
					next = m.start(ctx, client)
					m.use(client, live == nil)
				}
			}
		case <-next.synced():
			next.feed.goLive(feedOf(live))
			live.stop()
			live, next = next, nil
			release = time.After(graceTime) // of what it may have inherited
			m.use(live.client, true)
			misses, lost = 0, silence{}
			if roots = (peerRoots{}); m.trust != nil {
				roots = m.trust.read(ctx, live.client, roots)
			}
			m.log.Info("cluster synced", "cluster", m.id, "took", time.Since(live.began).Round(time.Millisecond).String())
		case <-next.broken():
		case <-live.broken():
		case <-release:
			live.feed.release()
		case <-health.C:
			if live == nil {
				break
			}
			err := live.client.ping(ctx)
			if err != nil {
				misses++
			} else {
				misses = 0
				stale(nil)
				if m.trust != nil {
					roots = m.trust.read(ctx, live.client, roots)
				}
			}
			if misses >= 2 && ctx.Err() == nil {
				stale(err)
			}
		}
		s := describe(live, next, problem, lost)
		if s.Status == Synced && m.trust != nil {
			s.Note = roots.note
			if s.Message == "" {
				s.Message = mismatch(roots.roots, m.trust.get())
			}
		}
		m.tell(s)
	}
}

func feedOf(a *attempt) *feed {
	if a == nil {
		return nil
	}
	return a.feed
}

// silence is since when an API server cannot be used, and the last reason.
type silence struct {
	since time.Time
	why   error
}

func (s silence) String() string {
	since := s.since.UTC().Format(time.RFC3339)
	var answer apierrors.APIStatus
	if errors.As(s.why, &answer) {
		return "since " + since + " " + cause(s.why, "")
	}
	return "the API server has not answered since " + since
}

// describe says where a cluster stands.
func describe(live, next *attempt, problem error, lost silence) ClusterStatus {
	var s ClusterStatus
	if next != nil {
		if problem = next.feed.err(); problem != nil {
			problem = errors.New(cause(problem, next.client.Host()))
		}
	}
	switch {
	case live == nil && problem != nil:
		s.Status, s.Message = Failed, problem.Error()
	case live == nil && next != nil && time.Since(next.began) > syncTimeout:
		s.Status, s.Message = Timeout, fmt.Sprintf("not synced after %v; still trying", syncTimeout)
	case live == nil:
		s.Status = Syncing
	case !lost.since.IsZero():
		s.Status, s.Message = Stale, lost.String()+"; what was last seen stays"
	case problem != nil:
		s.Status, s.Message = Failed, "the new credentials do not work, the old ones stay in use: "+problem.Error()
	default:
		s.Status = Synced
		// What the API server says is told; that it cannot be reached is for the health check.
		var answer apierrors.APIStatus
		if err := live.feed.err(); errors.As(err, &answer) {
			s.Message = err.Error()
		}
	}
	if live != nil {
		s.Server = live.client.Host()
	} else if next != nil {
		s.Server = next.client.Host()
	}
	return s
}

func (m *member) use(c *Client, now bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now || m.client == nil {
		m.client = c
	}
}

func (m *member) tell(s ClusterStatus) {
	m.mu.Lock()
	s.ID, s.Secret, s.Since = m.id, m.secret, m.status.Since
	if s.Status != m.status.Status {
		s.Since = time.Now()
	}
	was := m.status
	m.status = s
	m.mu.Unlock()
	if was.Status != s.Status || was.Message != s.Message {
		if s.Message != "" && s.Status != Stale {
			m.log.Warn("cluster is not as it should be", "cluster", m.id, "status", string(s.Status), "error", s.Message)
		}
		m.changed()
	}
}

// name notes the secret that names the cluster, which may change without a change of cluster.
func (m *member) name(secret string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.secret, m.status.Secret = secret, secret
}

func (m *member) current() (ClusterStatus, *Client) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status, m.client
}
