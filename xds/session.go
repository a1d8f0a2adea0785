package xds

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/carrick-mesh/carrick/resource"
)

// session is what a stream remembers. One goroutine owns it.
type session struct {
	server  *Server
	client  *Client
	stream  grpc.ServerStream
	watches map[string]*watch // by type URL
	nonces  uint64
	from    *published // what push is sending from

	// hold is the nonce of a message of clusters that the client has yet to answer. Until then
	// nothing that may refer to them is sent: only with its answer, or before it, does a client ask
	// for the endpoints of new clusters, without which routes to them lead nowhere.
	hold  string
	until time.Time // hold no longer than this
	said  string    // nonce of the last answer to a question
	gone  []*response

	// clusters that were sent while the client had not yet asked for endpoints on this stream.
	// A client that reconnects names the versions it holds of those, and would not get them.
	resent map[string]bool
}

// watch is the interest of a client in one type.
type watch struct {
	typeURL  string
	wildcard bool
	names    map[string]bool

	held     *view // what the client holds of it, nothing at first
	answered bool
	nonce    string              // of the last message
	sent     map[string][]string // by nonce: names in messages that are not answered yet

	// for the next message
	due     map[string]bool   // names to answer, whether or not they have changed
	initial map[string]string // delta: versions that the client had before this stream
	changed bool              // state of the world: the subscription is another one
	version string            // state of the world: what the client had before this stream
}

func (w *watch) selects(name string) bool { return w.wildcard || w.names[name] }

// patientFor is how long a client may take to answer a message of clusters.
const patientFor = 3 * time.Second

// order is that of Envoy's "eventual consistency considerations": what is referred to first.
// Types that are not in it follow.
var order = []string{
	resource.ClusterType, resource.EndpointType, resource.ListenerType, resource.RouteType,
	resource.SecretType, resource.EcdsType,
}

// named tells the types that can only be subscribed to by name: asking for none is not asking
// for all.
func named(typeURL string) bool {
	switch typeURL {
	case resource.EndpointType, resource.RouteType, resource.SecretType, resource.EcdsType:
		return true
	}
	return false
}

// whole tells the types of which a state-of-the-world response holds all: what is missing from
// it does not exist.
func whole(typeURL string) bool {
	return typeURL == resource.ClusterType || typeURL == resource.ListenerType
}

// ask answers r if it is a question.
func (s *session) ask(ctx context.Context, r *request) (bool, error) {
	if s.server.config.Answer == nil || s.client.Delta || s.watches[r.typeURL] != nil {
		return false, nil
	}
	if r.nonce != "" && r.nonce == s.said { // the ACK of an answer is not another question
		return true, nil
	}
	// Any other nonce is of the asker's own making: istioctl's first request has one.
	answers, known := s.server.config.Answer(ctx, s.client, r.typeURL, r.names)
	if !known {
		return false, nil
	}
	s.said = s.nonce()
	return true, s.stream.SendMsg(&response{typeURL: r.typeURL, nonce: s.said, answers: answers, server: s.server.config.Instance})
}

// handle takes a request in; push answers it.
func (s *session) handle(r *request) error {
	w := s.watches[r.typeURL]
	fresh := w == nil
	if fresh {
		if r.typeURL == "" {
			return status.Error(codes.InvalidArgument, "the request names no type_url")
		}
		if len(s.watches) == maxTypes {
			return status.Errorf(codes.ResourceExhausted, "more than %d types on one stream", maxTypes)
		}
		w = &watch{typeURL: r.typeURL, held: nothing, names: map[string]bool{}, due: map[string]bool{}}
		s.watches[r.typeURL] = w
	}
	s.acknowledge(w, r)
	if s.client.Delta {
		w.subscribe(r, fresh)
	} else {
		w.replace(r, fresh)
	}
	if len(w.names) > maxNames || len(w.initial) > maxNames {
		return status.Errorf(codes.ResourceExhausted, "more than %d names of type %s on one stream", maxNames, w.typeURL)
	}
	n := len(w.names)
	s.client.note(w.typeURL, func(t *TypeStatus) { t.Names = n })
	return nil
}

// acknowledge notes what r says of an earlier message.
func (s *session) acknowledge(w *watch, r *request) {
	if r.nonce == "" {
		return
	}
	if r.nonce == s.hold {
		s.hold = ""
	}
	if r.refused {
		s.server.metrics.rejected(w.typeURL)
		s.server.config.Log.Warn("proxy refused its configuration",
			"proxy", s.client.Node.ID, "type", short(w.typeURL), "nonce", r.nonce, "error", r.message)
	}
	names := w.sent[r.nonce]
	delete(w.sent, r.nonce)
	s.client.note(w.typeURL, func(t *TypeStatus) {
		t.Refused = refusedAfter(t.Refused, names, r)
		if r.refused {
			t.Nack = r.message
			return
		}
		t.Nack, t.Acked, t.AckedAt = "", r.nonce, time.Now()
	})
}

// maxUnanswered bounds what is remembered of messages that a client does not answer, and of what it refuses.
const maxUnanswered = 64

// refusedAfter returns which resources stand refused after an answer to a message of these names. Of many, a refusal
// mostly names those that it means.
func refusedAfter(before map[string]string, names []string, r *request) map[string]string {
	if len(before) == 0 && !r.refused {
		return nil
	}
	after := maps.Clone(before)
	for _, n := range names {
		delete(after, n)
	}
	if !r.refused {
		return after
	}
	meant := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !strings.Contains(r.message, n) })
	if len(meant) == 0 {
		meant = names
	}
	if after == nil {
		after = map[string]string{}
	}
	for _, n := range meant {
		if len(after) < maxUnanswered {
			after[n] = r.message
		}
	}
	return after
}

// remember keeps the names of a message until it is answered.
func (w *watch) remember(r *response) {
	if w.sent == nil || len(w.sent) >= maxUnanswered {
		w.sent = map[string][]string{}
	}
	names := slices.Clone(r.removed)
	for _, x := range r.resources {
		names = append(names, x.Name)
	}
	w.sent[r.nonce] = names
}

// subscribe changes the interest as a delta request says.
func (w *watch) subscribe(r *request, fresh bool) {
	if fresh {
		w.initial = r.initial
		// The first request without names asks for all, for types that have that.
		w.wildcard = len(r.subscribe) == 0 && !named(w.typeURL)
	}
	for _, n := range r.subscribe {
		if n == "*" {
			if !w.wildcard && w.answered { // what it has not seen yet: all is told again
				w.answered = false
			}
			w.wildcard = true
			continue
		}
		w.names[n] = true
		w.due[n] = true // even if it holds it: a client that asks again has dropped it
	}
	for _, n := range r.unsubscribe {
		if n == "*" {
			w.wildcard = false
			continue
		}
		delete(w.names, n)
		delete(w.due, n)
		if w.wildcard {
			w.due[n] = true // it said it dropped it, and all it still wants
		}
	}
	if fresh {
		for n := range w.initial { // held already: nothing to send if it is the same
			delete(w.due, n)
		}
	}
}

// replace changes the interest as a state-of-the-world request says, which names all of it.
func (w *watch) replace(r *request, fresh bool) {
	if !fresh && r.nonce != w.nonce {
		return // of a message that another one has followed; the client will answer that, too
	}
	if fresh {
		w.version = r.version
		w.wildcard = len(r.names) == 0 && !named(w.typeURL)
	}
	if !fresh && w.wildcard && len(r.names) == 0 {
		return
	}
	names := make(map[string]bool, len(r.names))
	wildcard := w.wildcard && len(r.names) == 0
	for _, n := range r.names {
		if n == "*" {
			wildcard = true
			continue
		}
		names[n] = true
		if !w.names[n] {
			w.due[n], w.changed = true, true
		}
	}
	if !fresh && wildcard != w.wildcard {
		w.changed = true
	}
	maps.DeleteFunc(w.due, func(n string, _ bool) bool { return !names[n] })
	w.names, w.wildcard = names, wildcard
}

// push sends all that the client should have now: what is referred to before what refers to
// it, and what is taken away last.
func (s *session) push() error {
	p := s.client.current.Load()
	if p == nil {
		return nil // nobody has said yet what it should hold
	}
	s.from = p
	for _, w := range s.inOrder() {
		if s.held() && w.typeURL != resource.ClusterType && w.typeURL != resource.EndpointType {
			return nil
		}
		var err error
		if s.client.Delta {
			var r *response
			if r, err = s.pushDelta(w, p); r != nil {
				s.gone = append(s.gone, r)
			}
		} else {
			err = s.pushWhole(w, p)
		}
		if err != nil {
			return err
		}
	}
	if s.held() {
		return nil
	}
	gone := s.gone
	s.gone = nil
	for _, r := range gone {
		if r.removed = s.stillGone(p, r); len(r.removed) == 0 {
			continue
		}
		if err := s.send(s.watches[r.typeURL], r); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) held() bool { return s.hold != "" && time.Now().Before(s.until) }

// stillGone returns the names that have not come back while they were held back.
func (s *session) stillGone(p *published, r *response) []string {
	now, w := p.view(r.typeURL), s.watches[r.typeURL]
	return slices.DeleteFunc(slices.Clone(r.removed), func(n string) bool { return now.get(n) != nil && w.selects(n) })
}

func (s *session) inOrder() []*watch {
	ws := make([]*watch, 0, len(s.watches))
	for _, t := range order {
		if w := s.watches[t]; w != nil {
			ws = append(ws, w)
		}
	}
	if len(ws) < len(s.watches) {
		for _, t := range slices.Sorted(maps.Keys(s.watches)) {
			if !slices.Contains(order, t) {
				ws = append(ws, s.watches[t])
			}
		}
	}
	return ws
}

// pushDelta sends what has changed. It returns what is to be sent when all other types are up
// to date: clusters go after the routes that led to them.
func (s *session) pushDelta(w *watch, p *published) (*response, error) {
	now := p.view(w.typeURL)
	first := !w.answered
	if !first && now == w.held && len(w.due) == 0 {
		return nil, nil
	}
	r := &response{delta: true, typeURL: w.typeURL, version: p.bundle.Version}
	var removed []string
	if first {
		r.resources, r.removed = w.introduce(now, s.resent)
	} else {
		r.resources, removed, r.removed = w.change(now)
	}
	w.held, w.answered, w.initial = now, true, nil
	clear(w.due)
	switch w.typeURL {
	case resource.ClusterType:
		s.follow(r.resources)
	case resource.EndpointType:
		s.resent = nil
	}
	var last *response
	if len(removed) > 0 {
		if w.typeURL == resource.ClusterType || w.typeURL == resource.EndpointType {
			last = &response{delta: true, typeURL: r.typeURL, version: r.version, removed: removed}
		} else {
			r.removed = append(r.removed, removed...)
		}
	}
	if !first && len(r.resources) == 0 && len(r.removed) == 0 {
		return last, nil
	}
	return last, s.send(w, r) // the first answer is given even if there is nothing in it
}

// introduce returns what to tell a client that holds what it says it holds.
func (w *watch) introduce(now *view, resent map[string]bool) (changed []*resource.Resource, removed []string) {
	add := func(r *resource.Resource) {
		if v, ok := w.initial[r.Name]; !ok || v != r.Version || w.due[r.Name] || w.typeURL == resource.EndpointType && resent[r.Name] {
			changed = append(changed, r)
		}
	}
	if w.wildcard {
		for r := range now.list.All() {
			add(r)
		}
	} else {
		for _, n := range slices.Sorted(maps.Keys(w.names)) {
			if r := now.get(n); r != nil {
				add(r)
			}
		}
	}
	for n := range w.initial {
		if now.get(n) == nil || !w.selects(n) {
			removed = append(removed, n)
		}
	}
	for n := range w.names {
		if _, told := w.initial[n]; !told && now.get(n) == nil {
			removed = append(removed, n)
		}
	}
	slices.Sort(removed)
	return changed, removed
}

// change returns what to tell a client that holds what it was sent: what has changed, what is
// gone, and what it has asked for and does not exist.
func (w *watch) change(now *view) (changed []*resource.Resource, removed, absent []string) {
	d := now.since(w.held)
	if w.wildcard && len(w.due) == 0 {
		return d.Changed, d.Removed, nil
	}
	for _, r := range d.Changed {
		if w.selects(r.Name) {
			changed = append(changed, r)
			delete(w.due, r.Name)
		}
	}
	for _, n := range d.Removed {
		if w.selects(n) {
			removed = append(removed, n)
			delete(w.due, n)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(w.due)) {
		if r := now.get(n); r != nil {
			changed = append(changed, r)
		} else {
			absent = append(absent, n)
		}
	}
	return changed, removed, absent
}

// follow makes the endpoints of clusters that are sent go out after them, changed or not:
// Envoy warms a cluster until its endpoints come, and does not ask for those it has.
func (s *session) follow(clusters []*resource.Resource) {
	w := s.watches[resource.EndpointType]
	if w != nil && w.answered {
		for _, c := range clusters {
			if w.selects(c.Name) {
				w.due[c.Name] = true
			}
		}
		return
	}
	if !s.client.Delta {
		return // the first answer holds all that it asks for
	}
	if s.resent == nil {
		s.resent = map[string]bool{}
	}
	for _, c := range clusters {
		s.resent[c.Name] = true
	}
}

// pushWhole sends a state-of-the-world response if there is something new in it.
func (s *session) pushWhole(w *watch, p *published) error {
	now := p.view(w.typeURL)
	first := !w.answered
	if !first && now == w.held && len(w.due) == 0 && !w.changed {
		return nil
	}
	r := &response{typeURL: w.typeURL, version: now.version()}
	changed, removed, _ := w.change(now)
	w.held, w.answered = now, true
	resubscribed := w.changed
	w.changed = false
	clear(w.due)
	if w.typeURL == resource.ClusterType {
		s.follow(changed)
	}
	if !whole(w.typeURL) {
		if len(changed) == 0 {
			return nil
		}
		r.resources = changed
		return s.send(w, r)
	}
	if first && w.wildcard && w.version == r.version {
		nonce, at := s.nonce(), time.Now() // as if it had been sent and taken
		s.client.note(w.typeURL, func(t *TypeStatus) {
			*t = TypeStatus{Version: p.bundle.Version, Sent: nonce, SentAt: at, Acked: nonce, AckedAt: at, Names: t.Names}
		})
		return nil
	}
	if !first && len(changed) == 0 && len(removed) == 0 && !resubscribed {
		return nil
	}
	if w.wildcard {
		r.resources = slices.Collect(now.list.All())
	} else {
		for _, n := range slices.Sorted(maps.Keys(w.names)) {
			if x := now.get(n); x != nil {
				r.resources = append(r.resources, x)
			}
		}
	}
	return s.send(w, r)
}

func (s *session) send(w *watch, r *response) error {
	r.nonce = s.nonce()
	w.nonce = r.nonce
	w.remember(r)
	now := time.Now()
	if w.typeURL == resource.ClusterType && len(r.resources) > 0 {
		s.hold, s.until = r.nonce, now.Add(patientFor)
	}
	s.client.note(w.typeURL, func(t *TypeStatus) { t.Version, t.Sent, t.SentAt = s.from.bundle.Version, r.nonce, now })
	if err := s.stream.SendMsg(r); err != nil {
		return err
	}
	s.server.metrics.pushed(w.typeURL)
	if s.from.at.After(s.client.ConnectedAt) {
		s.server.metrics.converge.Observe(time.Since(s.from.at).Seconds())
	}
	return nil
}

func (s *session) nonce() string {
	s.nonces++
	return strconv.FormatInt(s.client.ConnectedAt.UnixNano(), 36) + "-" + strconv.FormatUint(s.nonces, 10)
}
