package diagnose

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// Line is one line of an access log, in Istio's default text format or as JSON. "-" and "" mean
// that there was no value.
type Line struct {
	StartTime           string `json:"start_time"`
	Method              string `json:"method"`
	Path                string `json:"path"`
	Protocol            string `json:"protocol"`
	Code                string `json:"-"`
	Flags               string `json:"response_flags"`
	CodeDetails         string `json:"response_code_details"`
	TerminationDetails  string `json:"connection_termination_details"`
	TransportFailure    string `json:"upstream_transport_failure_reason"`
	BytesReceived       string `json:"-"`
	BytesSent           string `json:"-"`
	Duration            string `json:"-"` // milliseconds
	UpstreamServiceTime string `json:"-"` // milliseconds
	ForwardedFor        string `json:"x_forwarded_for"`
	UserAgent           string `json:"user_agent"`
	RequestID           string `json:"request_id"`
	Authority           string `json:"authority"`
	UpstreamHost        string `json:"upstream_host"`
	UpstreamCluster     string `json:"upstream_cluster"`
	UpstreamLocal       string `json:"upstream_local_address"`
	DownstreamLocal     string `json:"downstream_local_address"`
	DownstreamRemote    string `json:"downstream_remote_address"`
	ServerName          string `json:"requested_server_name"`
	RouteName           string `json:"route_name"`

	// Ambiguous is true for a line of text that can be read in more than one way, since a field that comes
	// from the client holds quotes. Such a client may mean to mislead.
	Ambiguous bool `json:"-"`
}

// ParseLine reads a line of an access log. What stands before its time (a pod's name, say) is
// left out.
func ParseLine(s string) (*Line, error) {
	s = strings.TrimSpace(s)
	if i := strings.IndexByte(s, '{'); i >= 0 && strings.HasSuffix(s, "}") {
		return parseJSONLine(s[i:])
	}
	for i := 0; i+1 < len(s); i++ {
		if s[i] == '[' && s[i+1] >= '0' && s[i+1] <= '9' {
			s = s[i:]
			break
		}
	}
	l := readText(textLine, s)
	if l == nil {
		return nil, fmt.Errorf("is not in Istio's default format: is meshConfig accessLogFormat set, or the line cut?")
	}
	if other := readText(textLineShort, s); *other != *l {
		l.Ambiguous = true
	}
	return l, nil
}

// textLine is Istio's default format. A request's path, the agent's name and x-forwarded-for come from
// clients and may hold quotes and blanks: the fields around them tell where they end. textLineShort is the
// same with the other choice where more than one end is possible.
var (
	textLine      = defaultFormat(".*")
	textLineShort = defaultFormat(".*?")
)

func defaultFormat(text string) *regexp.Regexp {
	const word, number = ` (\S+)`, ` (\d+|-)`
	quoted, plain := ` "(`+text+`)"`, ` "([^" ]*)"`
	return regexp.MustCompile(`^\[([^\]]*)\] "(\S+) (` + text + `) (HTTP/[\d.]+|-)"` +
		number + strings.Repeat(word, 3) + quoted + strings.Repeat(number, 3) + word +
		strings.Repeat(quoted, 2) + strings.Repeat(plain, 3) + strings.Repeat(word, 5) + `(?: (.*))?$`)
}

// readText returns nil for a line of another format.
func readText(format *regexp.Regexp, s string) *Line {
	m := format.FindStringSubmatch(s)
	if m == nil {
		return nil
	}
	l := &Line{}
	for i, f := range []*string{
		&l.StartTime, &l.Method, &l.Path, &l.Protocol,
		&l.Code, &l.Flags, &l.CodeDetails, &l.TerminationDetails, &l.TransportFailure, &l.BytesReceived, &l.BytesSent,
		&l.Duration, &l.UpstreamServiceTime, &l.ForwardedFor, &l.UserAgent, &l.RequestID, &l.Authority, &l.UpstreamHost,
		&l.UpstreamCluster, &l.UpstreamLocal, &l.DownstreamLocal, &l.DownstreamRemote, &l.ServerName, &l.RouteName,
	} {
		*f = m[1+i]
	}
	return l
}

func parseJSONLine(s string) (*Line, error) {
	l := &Line{}
	if err := json.Unmarshal([]byte(s), l); err != nil {
		return nil, fmt.Errorf("is not an access log's JSON: %w", err)
	}
	var numbers map[string]json.RawMessage
	if err := json.Unmarshal([]byte(s), &numbers); err != nil {
		return nil, err
	}
	for key, f := range map[string]*string{
		"response_code": &l.Code, "bytes_received": &l.BytesReceived, "bytes_sent": &l.BytesSent,
		"duration": &l.Duration, "upstream_service_time": &l.UpstreamServiceTime,
	} {
		*f = strings.Trim(string(numbers[key]), `"`)
	}
	return l, nil
}

// Side says whose log a line is from.
type Side int

const (
	Unknown     Side = iota
	Source           // the caller's sidecar, or a gateway that calls
	Destination      // the sidecar of the pod that answers
	Passthrough      // a gateway between networks, which sees TLS only
)

// Side tells by the name of the upstream cluster.
func (l *Line) Side() Side {
	switch {
	case strings.HasPrefix(l.UpstreamCluster, "outbound|"), l.UpstreamCluster == "PassthroughCluster", l.UpstreamCluster == "BlackHoleCluster":
		return Source
	case strings.HasPrefix(l.UpstreamCluster, "inbound|"), strings.HasPrefix(l.UpstreamCluster, "InboundPassthroughCluster"):
		return Destination
	case strings.HasPrefix(l.UpstreamCluster, "outbound_."):
		return Passthrough
	}
	return Unknown
}

// Fact is one field of a line, and what it means.
type Fact struct{ Field, Value, Meaning string }

// Explain names every field of the line. place says what an address (HOST:PORT) is, "" if that is
// not known.
func (l *Line) Explain(place func(address string) string) []Fact {
	side := l.Side()
	var facts []Fact
	add := func(field, value, meaning string) {
		if value != "" && value != "-" {
			facts = append(facts, Fact{field, value, meaning})
		}
	}
	at := func(address, role string) string {
		if p := place(address); p != "" {
			return p + ": " + role
		}
		return role
	}
	whose := map[Side]string{
		Source:      "the log of the caller's side: its sidecar, or a gateway that calls for others",
		Destination: "the log of the answering pod's sidecar",
		Passthrough: "the log of a gateway between networks: it sees TLS only, no request",
		Unknown:     "a log whose side the cluster's name does not tell",
	}[side]
	facts = append(facts, Fact{"(log)", "", whose})
	if l.Ambiguous {
		facts = append(facts, Fact{"(warning)", "", "the client sent quotes that look like the end of a field: this line can be read in more than one way"})
	}
	add("start time", l.StartTime, "when the first byte came, by this proxy's clock")
	if l.Method != "-" {
		add("request", strings.TrimSpace(l.Method+" "+l.Path+" "+l.Protocol), "method, path, protocol")
	}
	if l.Code == "0" {
		add("response code", l.Code, "none: not an HTTP request, or the caller was gone before the answer")
	} else {
		add("response code", l.Code, codeMeaning(l.Code))
	}
	add("response flags", l.Flags, flagsMeaning(l.Flags))
	add("code details", l.CodeDetails, detailsMeaning(l.CodeDetails))
	add("termination details", l.TerminationDetails, "why the connection was closed")
	add("transport failure", l.TransportFailure, transportMeaning(l.TransportFailure))
	add("bytes received", l.BytesReceived, "of the request's body, or of the connection from the caller")
	add("bytes sent", l.BytesSent, "of the response's body, or of the connection to the caller")
	add("duration", l.Duration, "milliseconds from the first byte of the request to the last of the response")
	add("upstream service time", l.UpstreamServiceTime, "milliseconds of it that the other side took")
	add("x-forwarded-for", l.ForwardedFor, "the caller that a proxy before this one named")
	add("user agent", l.UserAgent, "the caller's program")
	add("request id", l.RequestID, "the same in the logs of all proxies on the way: look for it there")
	add("authority", l.Authority, "the host that the caller asked for")
	add("upstream host", l.UpstreamHost, at(l.UpstreamHost, l.upstreamRole(side)))
	add("upstream cluster", l.UpstreamCluster, clusterMeaning(l.UpstreamCluster))
	add("upstream local address", l.UpstreamLocal, at(l.UpstreamLocal, l.upstreamLocalRole(side)))
	add("downstream local address", l.DownstreamLocal, at(l.DownstreamLocal, l.downstreamLocalRole(side)))
	add("downstream remote address", l.DownstreamRemote, at(l.DownstreamRemote, l.downstreamRemoteRole(side)))
	add("requested server name", l.ServerName, serverNameMeaning(l.ServerName))
	add("route name", l.RouteName, routeMeaning(l.RouteName))
	return facts
}

func (l *Line) upstreamRole(side Side) string {
	switch {
	case side == Destination:
		return "the application, in the same pod"
	case side == Passthrough:
		return "the pod that this gateway chose"
	case strings.HasSuffix(l.UpstreamHost, ":15443"):
		return "a gateway of another network, not the pod that answers: the gateway chooses that one"
	}
	return "the endpoint that was chosen"
}

func (l *Line) upstreamLocalRole(side Side) string {
	if side == Destination && (strings.HasPrefix(l.UpstreamLocal, "127.0.0.6:") || strings.HasPrefix(l.UpstreamLocal, "[::6]:")) {
		return "the sidecar's own end of the connection to the application; this source address keeps it from being redirected again"
	}
	return "this proxy's own end of the connection to the upstream host"
}

func (l *Line) downstreamLocalRole(side Side) string {
	if side == Source {
		return "where the caller wanted to connect (the original destination, as a rule the Service's ClusterIP), not the listener's port 15001"
	}
	return "where the connection came in"
}

func (l *Line) downstreamRemoteRole(side Side) string {
	switch side {
	case Source:
		return "the calling application's end of its connection"
	case Destination:
		return "who connected: the caller's sidecar, or the gateway that the request came through"
	case Passthrough:
		return "who connected to the gateway: as a rule a sidecar of another cluster"
	}
	return "who connected"
}
