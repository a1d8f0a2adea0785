package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/diagnose"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
)

// patience is how long a request may take.
const patience = 15 * time.Second

// headers are those by which the request is found again. A gateway at the mesh's edge gives requests
// from outside an id of its own, but logs their user agent.
func (t *tracer) headers() map[string]string {
	h := map[string]string{"x-request-id": t.id, "User-Agent": "carrick-trace/" + t.id}
	if t.host != "" {
		h["Host"] = t.host
	}
	return h
}

// send sends the request from a pod; false if nothing was sent.
func (t *tracer) send(ctx context.Context, pod *corev1.Pod, container string, found *traced) (bool, error) {
	here := t.peers[0]
	if container == "" {
		for _, c := range pod.Spec.Containers {
			if c.Name != "istio-proxy" {
				container = c.Name
				break
			}
		}
	}
	command := []string{"curl", "-sS", "--max-time", fmt.Sprint(int(patience.Seconds())), "-w", "\n%{http_code}"}
	for k, v := range t.headers() {
		command = append(command, "-H", k+": "+v)
	}
	out, err := here.exec(ctx, pod.Namespace, pod.Name, container, append(command, t.url.String())...)
	code := new(exec.CodeExitError)
	switch {
	case err == nil:
		i := strings.LastIndexByte(out, '\n')
		found.answered(out[:max(i, 0)], strings.TrimSpace(out[i+1:]))
		return true, nil
	case errors.As(err, code) && code.Code < 126: // curl's own: the logs may say more
		found.Answer = oneLine(err)
		return true, nil
	case errors.As(err, code) || strings.Contains(err.Error(), "executable file not found"):
		return t.sendBeside(ctx, pod, container, found)
	}
	return false, here.wrong(fmt.Errorf("sending from container %s of pod %s/%s: %w", container, pod.Namespace, pod.Name, err))
}

// answered notes an answer.
func (f *traced) answered(body, code string) {
	body = strings.TrimSpace(body)
	f.Body, f.Answer = body[:min(len(body), 200)], code
	f.OK = code >= "200" && code < "400"
}

// sendBeside sends the request by an ephemeral container: it is in the pod's network, and no user of
// the proxy's, so the pod's proxy takes it like one of the application.
func (t *tracer) sendBeside(ctx context.Context, pod *corev1.Pod, container string, found *traced) (bool, error) {
	here := t.peers[0]
	image := ""
	for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		if c.Name == "istio-proxy" {
			image = c.Image
		}
	}
	if !t.ephemeral || image == "" {
		found.Answer = "not sent"
		found.Notes = append(found.Notes, fmt.Sprintf("container %s has no curl, so nothing was sent: trace from a pod that has it, name another --container, or leave --ephemeral on for a pod with a sidecar", container))
		return false, nil
	}
	name := "carrick-trace-" + t.id[:8]
	command := []string{proxyProgram, "fetch", "-max-time", patience.String()}
	for k, v := range t.headers() {
		command = append(command, "-H", k+": "+v)
	}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"ephemeralContainers": []any{map[string]any{
		"name": name, "image": image, "command": append(command, t.url.String()), "securityContext": harmless(),
	}}}})
	if err != nil {
		return false, fmt.Errorf("encoding a container: %w", err)
	}
	pods := here.Kube.CoreV1().Pods(pod.Namespace)
	if _, err := pods.Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "ephemeralcontainers"); err != nil {
		if apierrors.IsForbidden(err) || apierrors.IsNotFound(err) || apierrors.IsInvalid(err) {
			found.Answer = "not sent"
			found.Notes = append(found.Notes, fmt.Sprintf("container %s has no curl, and an ephemeral container was refused, so nothing was sent: %s", container, oneLine(err)))
			return false, nil
		}
		return false, here.wrong(fmt.Errorf("adding an ephemeral container to pod %s/%s: %w", pod.Namespace, pod.Name, err))
	}
	found.Notes = append(found.Notes, fmt.Sprintf("container %s has no curl, so an ephemeral container sent the request: %s stays listed in the pod until that goes", container, name))
	if err := here.ended(ctx, pod, name); err != nil {
		return false, here.wrong(err)
	}
	limit := int64(64 << 10)
	log, err := pods.GetLogs(pod.Name, &corev1.PodLogOptions{Container: name, LimitBytes: &limit}).DoRaw(ctx)
	if err != nil {
		return false, here.wrong(fmt.Errorf("reading what container %s of pod %s/%s was answered: %w", name, pod.Namespace, pod.Name, err))
	}
	body, rest, ok := strings.Cut(string(log), "\ncode=")
	code, _, _ := strings.Cut(rest, "\n")
	switch why, failed := strings.CutPrefix(body, "error="); {
	case !ok:
		return false, here.wrong(fmt.Errorf("container %s of pod %s/%s says: %s", name, pod.Namespace, pod.Name, oneLine(errors.New(string(log)))))
	case failed:
		found.Answer = why
	default:
		found.answered(body, code)
	}
	return true, nil
}

// ended waits until an ephemeral container has done its work.
func (c *cluster) ended(ctx context.Context, pod *corev1.Pod, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 45*time.Second)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	state := "it has not begun"
	for {
		p, err := c.Kube.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
		if err == nil {
			for _, s := range p.Status.EphemeralContainerStatuses {
				switch {
				case s.Name != name:
				case s.State.Terminated != nil:
					return nil
				case s.State.Waiting != nil:
					state = strings.TrimSpace(s.State.Waiting.Reason + " " + s.State.Waiting.Message)
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("ephemeral container %s of pod %s/%s does not end: %s", name, pod.Namespace, pod.Name, state)
		case <-tick.C:
		}
	}
}

// runOutside sends the request from this machine to a gateway, and follows it from there.
func (t *tracer) runOutside(ctx context.Context, found *traced) error {
	if err := t.sendFromHere(ctx, found); err != nil {
		return err
	}
	where, service := t.gatewayOf(ctx, t.url.Hostname())
	if where == nil {
		found.OK = false
		found.Verdict = fmt.Sprintf("%s is no load balancer's address of the clusters that were looked at, so there is no gateway to follow the request from: give the gateway's address, and --host for its name", t.url.Hostname())
		return nil
	}
	pods, err := where.Kube.CoreV1().Pods(service.Namespace).List(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(service.Spec.Selector).String(), FieldSelector: "status.phase=Running", Limit: 200})
	if err != nil {
		return where.wrong(fmt.Errorf("listing the pods of Service %s/%s: %w", service.Namespace, service.Name, err))
	}
	if len(pods.Items) == 0 {
		found.OK, found.Verdict = false, fmt.Sprintf("Service %s/%s in %s, which has the address, has no running pod", service.Namespace, service.Name, where.name)
		return nil
	}
	deadline := time.Now().Add(t.wait)
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		for i := range pods.Items {
			pod := &pods.Items[i]
			line, err := where.findLine(ctx, pod.Namespace, pod.Name, t.key(), diagnose.Source, t.began, 0)
			if err != nil {
				return err
			}
			if line != nil {
				source := t.point(ctx, where, pod)
				source.Gateway, source.Line = true, line
				if line.RequestID != "-" && line.RequestID != "" {
					t.id, found.RequestID = line.RequestID, line.RequestID // the gateway's own
				}
				return t.tell(ctx, where, source, found)
			}
		}
		if !time.Now().Before(deadline) {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	source := t.point(ctx, where, &pods.Items[0])
	source.Gateway = true
	why := "it logged no such request, so it did not get there: is the address announced on this network?"
	if source.Dump != nil && !source.Dump.LogsAccess() {
		why = "its access log is off: set accessLogFile: /dev/stdout in data.mesh of ConfigMap istio, namespace " + t.app.target.istioNamespace
	}
	found.Notes = append(found.Notes, fmt.Sprintf("the gateway is Service %s/%s in %s; %s", service.Namespace, service.Name, where.name, why))
	found.Verdict = "the answer was " + found.Answer
	return nil
}

// sendFromHere sends the request from this machine. No answer is a finding, not an error.
func (t *tracer) sendFromHere(ctx context.Context, found *traced) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url.String(), nil)
	if err != nil {
		return usagef("%s: %v", t.url, err)
	}
	for k, v := range t.headers() {
		r.Header.Set(k, v)
	}
	r.Host = t.authority()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(r)
	if err != nil {
		found.Answer = oneLine(err)
		return nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 200))
	if err != nil {
		found.Answer = oneLine(err)
		return nil
	}
	found.answered(string(b), fmt.Sprint(resp.StatusCode))
	return nil
}

// gatewayOf finds the Service that a load balancer's address or name is of, and its cluster.
func (t *tracer) gatewayOf(ctx context.Context, host string) (*peer, *corev1.Service) {
	addresses := []string{host}
	if net.ParseIP(host) == nil {
		if found, err := net.DefaultResolver.LookupHost(ctx, host); err == nil {
			addresses = append(addresses, found...)
		}
	}
	for _, a := range addresses {
		for _, p := range t.peers {
			name, ok := strings.CutPrefix(p.at.place(a), "load balancer of Service ")
			namespace, service, ok2 := strings.Cut(name, "/")
			if !ok || !ok2 {
				continue
			}
			if s, err := p.Kube.CoreV1().Services(namespace).Get(ctx, service, metav1.GetOptions{}); err == nil {
				return p, s
			}
		}
	}
	return nil, nil
}

// exec runs a command in a container and returns what it printed.
func (c *cluster) exec(ctx context.Context, namespace, pod, container string, command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req := c.Kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	spdy, err := remotecommand.NewSPDYExecutor(c.config, "POST", req.URL())
	if err != nil {
		return "", err
	}
	executor := spdy
	if ws, err := remotecommand.NewWebSocketExecutor(c.config, "GET", req.URL().String()); err == nil {
		if both, err := remotecommand.NewFallbackExecutor(ws, spdy, upgradeFailed); err == nil {
			executor = both
		}
	}
	var stdout, stderr bytes.Buffer
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr}); err != nil {
		return stdout.String(), fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()+stdout.String()))
	}
	return stdout.String(), nil
}
