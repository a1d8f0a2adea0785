package cli

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// maxAnswer bounds what a pod may answer, in bytes: a config dump of a large mesh is tens of MB.
const maxAnswer = 512 << 20

// fetch gets http://127.0.0.1:PORT/PATH inside a pod, through the API server's port forwarding.
func (c *cluster) fetch(ctx context.Context, namespace, pod string, port int, path string) ([]byte, error) {
	return c.call(ctx, http.MethodGet, namespace, pod, port, path)
}

// call is fetch with another method.
func (c *cluster) call(ctx context.Context, method, namespace, pod string, port int, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return c.forward(namespace, pod, port) },
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://127.0.0.1:%d/%s", port, strings.TrimPrefix(path, "/")), nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("port %d of pod %s/%s: %w", port, namespace, pod, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("port %d of pod %s/%s: %w", port, namespace, pod, err)
	}
	if resp.StatusCode != http.StatusOK {
		text := strings.TrimSpace(string(b[:min(len(b), 300)]))
		return nil, fmt.Errorf("port %d of pod %s/%s: %s: %s", port, namespace, pod, resp.Status, text)
	}
	return b, nil
}

// forward opens a connection to a port of a pod. Where the API server or something between does
// not speak WebSocket, it falls back to SPDY.
func (c *cluster) forward(namespace, pod string, port int) (*podConn, error) {
	u := c.Kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	rt, upgrader, err := spdy.RoundTripperFor(c.config)
	if err != nil {
		return nil, err
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: rt}, http.MethodPost, u)
	if ws, err := portforward.NewSPDYOverWebsocketDialer(u, c.config); err == nil {
		dialer = portforward.NewFallbackDialer(ws, dialer, upgradeFailed)
	}
	conn, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return nil, fmt.Errorf("forwarding port %d of pod %s/%s: %w", port, namespace, pod, err)
	}
	header := http.Header{}
	header.Set(corev1.StreamType, corev1.StreamTypeError)
	header.Set(corev1.PortHeader, strconv.Itoa(port))
	header.Set(corev1.PortForwardRequestIDHeader, "0")
	errs, err := conn.CreateStream(header)
	if err != nil {
		conn.Close()
		return nil, err
	}
	errs.Close() // we write nothing to it
	header.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := conn.CreateStream(header)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &podConn{Stream: data, conn: conn, errs: errs}, nil
}

// upgradeFailed reports that WebSocket was refused, not what was asked through it.
func upgradeFailed(err error) bool {
	return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
}

// podConn is a forwarded connection as a net.Conn, without deadlines: requests have contexts.
type podConn struct {
	httpstream.Stream
	conn httpstream.Connection
	errs httpstream.Stream
}

// Read turns an early end into the reason that the kubelet gives, which comes on a stream of its own.
func (p *podConn) Read(b []byte) (int, error) {
	n, err := p.Stream.Read(b)
	if n == 0 && err == io.EOF {
		if msg, _ := io.ReadAll(io.LimitReader(p.errs, 4096)); len(msg) > 0 {
			return 0, fmt.Errorf("%s", strings.TrimSpace(string(msg)))
		}
	}
	return n, err
}

func (p *podConn) Close() error {
	p.Stream.Reset()
	return p.conn.Close()
}

// CloseWrite tells the pod that nothing more comes.
func (p *podConn) CloseWrite() error { return p.Stream.Close() }

func (p *podConn) LocalAddr() net.Addr              { return podAddr{} }
func (p *podConn) RemoteAddr() net.Addr             { return podAddr{} }
func (p *podConn) SetDeadline(time.Time) error      { return nil }
func (p *podConn) SetReadDeadline(time.Time) error  { return nil }
func (p *podConn) SetWriteDeadline(time.Time) error { return nil }

type podAddr struct{}

func (podAddr) Network() string { return "pod" }
func (podAddr) String() string  { return "pod" }

func openFile(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w; check the name", err)
	}
	return f, nil
}
