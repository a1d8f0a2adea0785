package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/carrick-mesh/carrick/install"
	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// checkLabel marks the namespaces of mesh check, with "true", and its pods and Services.
const checkLabel = "carrick.dev/check"

// pairs sends requests from a pod of each cluster to a pod of each, in a namespace that mesh check
// makes for it in every cluster and takes away again. Each pod is server and client; a Service for
// each cluster, known in all, leads to the pod of that cluster only.
type pairs struct {
	app       *app
	members   []*member
	requests  int // for each pair
	timeout   time.Duration
	namespace string
}

// answered is what came of the requests of one pair.
type answered struct {
	good   int
	reason string // of the last that failed
}

// run makes the pods, sends the requests, prints the table of counts, and removes the pods.
func (p *pairs) run(ctx context.Context, out io.Writer, keep bool) (bad findings) {
	p.namespace = "carrick-check-" + uuid.NewString()[:5]
	fmt.Fprintf(out, "Sending %d requests between each pair of clusters, by pods of namespace %s\n", p.requests, p.namespace)
	if !keep {
		defer func() { bad = append(bad, p.remove(context.WithoutCancel(ctx))...) }()
	}
	var mu sync.Mutex
	var wait sync.WaitGroup
	for i, m := range p.members {
		wait.Go(func() {
			err := p.make(ctx, i, m)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				bad.add("%s", oneLine(m.wrong(err)))
			}
		})
	}
	wait.Wait()
	if len(bad) > 0 {
		return bad
	}
	var rows [][]string
	header := "REQUESTS FROM"
	for _, m := range p.members {
		header += "\tTO " + strings.ToUpper(m.cfg.Cluster)
	}
	for _, from := range p.members {
		row := []string{from.cfg.Cluster}
		for i, to := range p.members {
			a := p.send(ctx, from, i, to)
			row = append(row, fmt.Sprintf("%d of %d", a.good, p.requests))
			if a.good < p.requests {
				bad.add("of %d requests from %s to %s %d were answered (%s); follow one: carrick mesh check --keep, then carrick trace check.%s http://%s/ --context=%[2]s",
					p.requests, from.context, to.context, a.good, a.reason, p.namespace, p.host(i))
			}
		}
		rows = append(rows, row)
	}
	if err := table(out, header, rows); err != nil {
		bad.add("%s", oneLine(err))
	}
	if keep {
		fmt.Fprintf(out, "Kept namespace %s in each cluster; its pods end after 10 minutes. Remove it: kubectl delete namespace %[1]s\n", p.namespace)
	}
	return bad
}

func (p *pairs) host(i int) string { return fmt.Sprintf("to-%d.%s", i, p.namespace) }

// make makes the namespace, Services and pod in the i-th cluster, and waits until the pod is ready.
func (p *pairs) make(ctx context.Context, i int, m *member) error {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	planes, err := m.controlPlanes(ctx, p.app.target.istioNamespace)
	if err != nil {
		return err
	}
	if _, err := m.Kube.CoreV1().Namespaces().Create(ctx, p.checkNamespace(m.cfg.Revision), metav1.CreateOptions{FieldManager: install.Manager}); err != nil {
		return fmt.Errorf("making namespace %s: %w", p.namespace, err)
	}
	for j := range p.members {
		if _, err := m.Kube.CoreV1().Services(p.namespace).Create(ctx, checkService(j), metav1.CreateOptions{FieldManager: install.Manager}); err != nil {
			return fmt.Errorf("making a Service to check with: %w", err)
		}
	}
	pod := checkPod(i, m.cfg.Cluster, planes[0].Spec.Containers[0].Image)
	state := "it is not made yet"
	made := false
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		if !made {
			// The service account of a new namespace comes a moment later.
			_, err := m.Kube.CoreV1().Pods(p.namespace).Create(ctx, pod, metav1.CreateOptions{FieldManager: install.Manager})
			made = err == nil || apierrors.IsAlreadyExists(err)
			if err != nil && !made {
				state = oneLine(err)
			}
		} else if have, err := m.Kube.CoreV1().Pods(p.namespace).Get(ctx, pod.Name, metav1.GetOptions{}); err == nil {
			var ready bool
			if ready, state = podState(have); ready {
				if len(have.Spec.Containers)+len(have.Spec.InitContainers) < 2 {
					return fmt.Errorf("pod %s/%s got no sidecar: is the injector's webhook there, and does it select its namespace? kubectl --context=%s get mutatingwebhookconfigurations", p.namespace, pod.Name, m.context)
				}
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("pod %s/%s is not ready within %v: %s; see carrick mesh check --keep, and kubectl --context=%s describe pod -n NAMESPACE %[2]s", p.namespace, pod.Name, p.timeout, state, m.context)
		case <-tick.C:
		}
	}
}

// podState says whether a pod is ready, and if not, what it waits for.
func podState(p *corev1.Pod) (ready bool, why string) {
	why = "it is " + string(p.Status.Phase)
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return true, ""
		}
		if c.Status == corev1.ConditionFalse && c.Message != "" {
			why = c.Message
		}
	}
	for _, s := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if w := s.State.Waiting; w != nil && w.Reason != "" && w.Reason != "PodInitializing" && w.Reason != "ContainerCreating" {
			return false, fmt.Sprintf("container %s: %s %s", s.Name, w.Reason, w.Message)
		}
	}
	return false, why
}

func (p *pairs) checkNamespace(revision string) *corev1.Namespace {
	labels := map[string]string{checkLabel: "true", "istio-injection": "enabled"}
	if revision != "" && revision != "default" {
		labels = map[string]string{checkLabel: "true", "istio.io/rev": revision}
	}
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: p.namespace, Labels: labels}}
}

func checkService(i int) *corev1.Service {
	name := fmt.Sprintf("to-%d", i)
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{checkLabel: name}}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{checkLabel: name},
		Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}},
	}}
}

// checkPod may do nothing but listen and connect, and ends by itself if nobody removes it.
func checkPod(i int, text, image string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "check", Labels: map[string]string{"app": "carrick-check", checkLabel: fmt.Sprintf("to-%d", i)}},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken:  new(false),
			ActiveDeadlineSeconds:         new(int64(600)),
			TerminationGracePeriodSeconds: new(int64(1)),
			Containers: []corev1.Container{{
				Name: "check", Image: image, ImagePullPolicy: corev1.PullIfNotPresent,
				Command:         []string{proxyProgram, "echo", ":8080", text},
				Ports:           []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
				SecurityContext: harmless(),
			}},
		},
	}
}

// proxyProgram is where all images of Carrick have carrick-proxy.
const proxyProgram = "/usr/local/bin/carrick-proxy"

// harmless is of containers that need no right at all. The user is not the proxy's: what that sends is
// not redirected to the proxy.
func harmless() *corev1.SecurityContext {
	return &corev1.SecurityContext{
		RunAsUser: new(int64(1338)), RunAsGroup: new(int64(1338)), RunAsNonRoot: new(true),
		AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true), Privileged: new(false),
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

// send sends the requests of a pair. The clusters learn of new pods within seconds, so the first
// answer is waited for; after it, each request counts.
func (p *pairs) send(ctx context.Context, from *member, i int, to *member) answered {
	url := "http://" + p.host(i) + "/"
	a := answered{reason: "no answer"}
	deadline := time.Now().Add(min(p.timeout, 30*time.Second))
	for first := true; ; first = false {
		a = p.fetch(ctx, from, url, 1, to.cfg.Cluster)
		if a.good == 1 || !time.Now().Before(deadline) || ctx.Err() != nil {
			break
		}
		if !first {
			pause(ctx, 500*time.Millisecond)
		}
	}
	if a.good == 0 {
		return a
	}
	return p.fetch(ctx, from, url, p.requests, to.cfg.Cluster)
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// fetch counts the answers of status 200 with the name of the cluster that is asked.
func (p *pairs) fetch(ctx context.Context, from *member, url string, n int, want string) answered {
	out, err := from.exec(ctx, p.namespace, "check", "check", proxyProgram, "fetch", "-n", fmt.Sprint(n), "-max-time", "5s", url)
	a := countFetched(out, want)
	if a.good < n && a.reason == "" {
		a.reason = "no answer"
		if err != nil {
			a.reason = oneLine(err)
		}
	}
	return a
}

// countFetched reads what carrick-proxy fetch prints: a line of the body, then one of the status.
func countFetched(out, want string) (a answered) {
	body := ""
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		code, ok := strings.CutPrefix(line, "code=")
		switch {
		case !ok:
			body = line
		case code == "200" && body == want:
			a.good++
		case code == "000":
			a.reason = strings.TrimPrefix(body, "error=")
		default:
			a.reason = strings.TrimSpace("status " + code + " " + body)
		}
	}
	return a
}

// remove takes the namespace away in every cluster, also when the command was interrupted.
func (p *pairs) remove(ctx context.Context) (bad findings) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for _, m := range p.members {
		err := m.Kube.CoreV1().Namespaces().Delete(ctx, p.namespace, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			bad.add("namespace %s could not be removed: %s; kubectl --context=%s delete namespace %[1]s", p.namespace, oneLine(m.wrong(err)), m.context)
		}
	}
	return bad
}

// removeStale takes away what a check that was killed has left.
func removeStale(ctx context.Context, c *cluster, now time.Time) error {
	l, err := c.Kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: checkLabel + "=true"})
	if err != nil {
		return c.wrong(fmt.Errorf("listing namespaces: %w", err))
	}
	var errs []error
	for _, ns := range l.Items {
		if now.Sub(ns.CreationTimestamp.Time) > 15*time.Minute && ns.DeletionTimestamp == nil {
			if err := c.Kube.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				errs = append(errs, c.wrong(err))
			}
		}
	}
	return errors.Join(errs...)
}
